"""A sample is drawn by its seed; half of it are the longest texts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from qdrant_client import models

from e2rank_rag.check import sample as sampling
from e2rank_rag.check.opening import opened
from e2rank_rag.check.outline import outline
from e2rank_rag.check.sample import draw, fields_of
from e2rank_rag.errors import StoreError
from e2rank_rag.store import LANGCHAIN_LAYOUT, Layout
from e2rank_rag.types import Document
from tests.checking import DOCUMENTS, fill, raw_collection

MANY = [Document(f"n{n}", "word " * (n + 1), {"title": f"t{n}"}) for n in range(40)]


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    folder = tmp_path_factory.mktemp("many")
    vectors = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
    fill(folder, vectors, documents=MANY).close()
    return folder


def drawn(folder, *, size=8, seed=0):
    with opened(str(folder)) as connection:
        seen = outline(connection, None)
        return draw(connection, seen, seen.vector(None), size=size, seed=seed)


def test_the_same_seed_draws_the_same_texts_and_another_one_others(index):
    first, again, other = (
        [text.id for text in drawn(index, seed=seed).texts] for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_half_are_the_longest_and_the_texts_come_by_length(index):
    texts = drawn(index).texts
    assert [text.id for text in texts[-4:]] == ["n36", "n37", "n38", "n39"]
    lengths = [len(text.content) for text in texts]
    assert lengths == sorted(lengths)


def test_what_was_drawn_and_not_chosen_is_kept_apart(index):
    found = drawn(index)
    chosen, others = ({text.id for text in texts} for texts in (found.texts, found.others))
    assert (len(chosen), len(others), chosen & others) == (8, 32, set())


def test_large_collections_are_drawn_from_their_first_ids(index, monkeypatch):
    monkeypatch.setattr(sampling, "DRAWN_IDS", 5)
    monkeypatch.setattr(sampling, "IDS_PER_PAGE", 3)
    assert drawn(index).drawn_from == 5


def test_fields_that_most_texts_have_come_with_titles_first(tmp_path):
    odd = Document("odd", "one more", {"title": "T", "year": 1, "rare": "r", "long": "x" * 500})
    fill(tmp_path, np.eye(9, dtype=np.float32), documents=[*DOCUMENTS, odd]).close()
    assert drawn(tmp_path, size=9).fields == ("title", "year")


def test_texts_that_differ_come_before_numbers_and_what_is_the_same_everywhere(tmp_path):
    metas = [{"n": n, "lang": "en", "author": f"A{n}", "title": f"T{n}"} for n in range(8)]
    documents = [replace(d, meta=meta) for d, meta in zip(DOCUMENTS, metas, strict=True)]
    fill(tmp_path, np.eye(8, dtype=np.float32), documents=documents).close()
    assert drawn(tmp_path).fields == ("title", "author", "n", "lang")


def test_points_without_text_or_vector_are_counted(tmp_path):
    config = {"v": models.VectorParams(size=2, distance=models.Distance.DOT)}
    payloads = [{"body": "a text"}, {"body": " "}, {"body": "b text"}, {"body": "c text"}]
    vectors = [{"v": [3.0, 4.0]}, {"v": [1.0, 0.0]}, {}, {"v": [0.0, 0.0]}]
    found = drawn(raw_collection(tmp_path, payloads, vectors, config=config))
    (text,) = found.texts
    assert found.unusable == 3
    assert (text.id, text.length) == ("1", pytest.approx(5.0))
    np.testing.assert_allclose(text.vector, [0.6, 0.8], atol=1e-6)


def test_a_collection_without_usable_points_is_an_error(tmp_path):
    config = {"v": models.VectorParams(size=2, distance=models.Distance.DOT)}
    raw_collection(tmp_path / "a", [{"body": "text"}], [{}], config=config)
    with pytest.raises(StoreError, match="none of 1 points"):
        drawn(tmp_path / "a")
    raw_collection(tmp_path / "b", [], [], config=config)
    with pytest.raises(StoreError, match="is empty"):
        drawn(tmp_path / "b")


def test_fields_are_numbers_and_texts_of_the_meta_and_beside_it():
    meta = {"title": "T", "year": 2001, "tags": ["a"], "none": None, "flag": True, "empty": ""}
    payload = {"page_content": "text", "metadata": meta, "lang": "en"}
    assert fields_of(payload, LANGCHAIN_LAYOUT) == {
        "lang": "en",
        "title": "T",
        "year": "2001",
        "empty": "",
    }
    assert fields_of({"id": "1", "content": "text", "meta": None}, Layout()) == {}
