"""A result says what it was measured on."""

from __future__ import annotations

import json

import pytest

from e2rank_rag.bench import machine as machine_module
from e2rank_rag.bench.machine import (
    hardware_dtypes,
    processor_flags,
    this_machine,
)
from e2rank_rag.models import cpu


def test_the_machine_is_named_and_fits_into_json():
    about = json.loads(json.dumps(this_machine()))
    assert {"processor", "flags", "cores", "affinity", "threads", "pools", "date"} <= about.keys()
    assert about["torch"]
    assert 1 <= about["usable_threads"] <= about["affinity"] <= about["cores"]


@pytest.mark.parametrize(
    ("info", "flags"),
    [
        ({"flags": "fpu avx2 avx512f"}, ["avx2", "avx512f"]),
        ({"flags": "amx_bf16 avx2"}, ["avx2", "amx_bf16"]),
        ({"Features": "fp asimd bf16"}, ["asimd", "bf16"]),
        ({}, []),
    ],
)
def test_the_flags_are_those_that_matrix_products_can_use(monkeypatch, info, flags):
    monkeypatch.setattr(machine_module, "_cpuinfo", lambda: info)
    assert processor_flags() == flags


@pytest.mark.parametrize(
    ("able", "dtypes"), [(False, ["float32"]), (True, ["float32", "bfloat16"])]
)
def test_bfloat16_is_measured_where_the_processor_computes_in_it(monkeypatch, able, dtypes):
    monkeypatch.setattr(cpu, "has_bfloat16", lambda: able)
    assert hardware_dtypes() == dtypes
