"""The matrix peak of this machine."""

from __future__ import annotations

import dataclasses

import pytest

from e2rank_rag.bench import machine, peak
from tests.bench.sides import Here, tiny


@pytest.mark.parametrize(
    ("flags", "dtypes"), [([], ["float32"]), (["avx512_bf16"], ["float32", "bfloat16"])]
)
def test_the_peak_is_measured_for_one_thread_and_for_all(monkeypatch, flags, dtypes):
    monkeypatch.setattr(machine, "processor_flags", lambda: flags)
    peaks = peak.measure(dataclasses.replace(tiny("minilm"), threads=2), Here)
    assert [*peaks] == dtypes
    assert all([*by_threads] == ["1", "2"] for by_threads in peaks.values())


def test_a_rate_counts_two_operations_for_each_pair_of_numbers():
    # No processor of today does a product of 32 rows slower than this, or faster.
    assert 1e-6 < peak.gflops("float32", 32, 0.0) < 1e5
