"""Texts are encoded once, in a run or for all runs."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from e2rank_rag.training.vectors import TextVectors


class Encoding:
    """Vectors [length, ordinal of the first letter] of texts, and which were asked for."""

    def __init__(self):
        self.asked = []

    def __call__(self, texts):
        self.asked.append(list(texts))
        return np.array([[len(text), ord(text[0])] for text in texts], dtype=np.float32)


def test_a_text_is_encoded_once_and_found_by_itself():
    vectors, encode = TextVectors(2), Encoding()
    vectors.encode(["a", "bb", "a"], encode)
    vectors.encode(["ccc", "bb"], encode)
    assert encode.asked == [["a", "bb"], ["ccc"]]
    np.testing.assert_array_equal(vectors.of(["bb", "a", "ccc"]), [[2, 98], [1, 97], [3, 99]])


def test_runs_side_by_side_may_keep_vectors_in_one_file(tmp_path):
    cache = tmp_path / "minilm.npz"
    together = threading.Barrier(4)

    def run(letter):
        vectors = TextVectors(2, cache=cache)
        together.wait(10)
        for count in range(1, 20):
            vectors.encode([letter * count], Encoding())

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(run, "abcd"))
    assert [path.name for path in tmp_path.iterdir()] == ["minilm.npz"]
    last = TextVectors(2, cache=cache)
    encode = Encoding()
    last.encode([letter * count for letter in "abcd" for count in range(1, 20)], encode)
    # What one of them has written is there, whole.
    assert len(encode.asked[0]) == 3 * 19


def test_a_cache_serves_the_next_run_and_grows(tmp_path):
    cache = tmp_path / "kept" / "minilm.npz"
    TextVectors(2, cache=cache).encode(["a", "bb"], Encoding())
    encode = Encoding()
    vectors = TextVectors(2, cache=cache)
    vectors.encode(["bb", "ccc"], encode)
    assert encode.asked == [["ccc"]]
    np.testing.assert_array_equal(vectors.values, [[2, 98], [3, 99]])
    again = Encoding()
    TextVectors(2, cache=cache).encode(["a", "bb", "ccc"], again)
    assert again.asked == []


def test_a_write_that_fails_leaves_the_cache_as_it_was(tmp_path, monkeypatch):
    cache = tmp_path / "minilm.npz"
    TextVectors(2, cache=cache).encode(["a"], Encoding())
    before = cache.read_bytes()

    def fails(*args, **kwargs):
        raise OSError("no space left")

    monkeypatch.setattr(np, "savez", fails)
    with pytest.raises(OSError, match="no space left"):
        TextVectors(2, cache=cache).encode(["bb"], Encoding())
    assert cache.read_bytes() == before
