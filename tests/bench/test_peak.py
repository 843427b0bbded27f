"""The matrix peak of this machine."""

from __future__ import annotations

import dataclasses

import pytest

from e2rank_rag.bench import peak
from e2rank_rag.models import cpu
from tests.bench.sides import Here, tiny


@pytest.mark.parametrize(
    ("able", "dtypes"), [(False, ["float32"]), (True, ["float32", "bfloat16"])]
)
def test_the_peak_is_measured_for_one_thread_and_for_all(monkeypatch, able, dtypes):
    monkeypatch.setattr(cpu, "has_bfloat16", lambda: able)
    peaks = peak.measure(dataclasses.replace(tiny("minilm"), threads=2), Here)
    assert [*peaks] == dtypes
    assert all([*by_threads] == ["1", "2"] for by_threads in peaks.values())


def test_a_rate_counts_two_operations_for_each_pair_of_numbers():
    # No processor of today does a product of 32 rows slower than this, or faster.
    assert 1e-6 < peak.gflops("float32", 32, 0.0) < 1e5
