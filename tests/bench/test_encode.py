"""Encoding is compared at the same threads, dtype and length."""

from __future__ import annotations

import pytest

from e2rank_rag.bench.encode import our_dtypes
from e2rank_rag.models import cpu
from tests.bench.sides import TINY


def test_encoding_compares_sides_of_the_same_threads_dtype_and_length(result):
    (part,) = result["parts"]["encode"]["by_threads"]
    sides = part["sides"]
    assert {"e2rank_rag float32", "e2rank_rag auto"} <= sides.keys()
    # Sides in this process have its threads, whatever was asked for.
    assert len({row["threads"] for row in sides.values()}) == 1
    assert len({row["tokens"] for row in sides.values()}) == 1
    assert len({row["flops"] for row in sides.values()}) == 1
    assert len({row["max_length"] for row in sides.values()}) == 1
    first = part["ratios"][0]
    assert first["faster"] == "e2rank_rag float32"
    assert first["slower"] == "sentence-transformers float32"
    assert first["wall"]["worst"] <= first["wall"]["median"] <= first["wall"]["best"]
    assert len(first["wall"]["pairs"]) == TINY.rounds
    assert part["lowest_cosine_to_float32"]["sentence-transformers float32"] > 0.999


def test_a_rate_is_a_share_of_the_peak_of_the_same_dtype(result):
    (part,) = result["parts"]["encode"]["by_threads"]
    row = part["sides"]["e2rank_rag float32"]
    assert row["gflops"] == pytest.approx(row["flops"] / row["wall"]["median"] / 1e9)
    # No peak was measured for the threads of this process, if they are others than asked for.
    peak = result["peak_gflops"]["float32"].get(str(row["threads"]))
    assert row["share_of_peak"] == (None if peak is None else pytest.approx(row["gflops"] / peak))


@pytest.mark.parametrize(
    ("able", "dtypes"),
    [(False, ["float32", "auto"]), (True, ["float32", "bfloat16", "auto"])],
)
def test_bfloat16_is_measured_where_the_processor_has_it(monkeypatch, able, dtypes):
    monkeypatch.setattr(cpu, "has_bfloat16", lambda: able)
    assert our_dtypes() == dtypes
