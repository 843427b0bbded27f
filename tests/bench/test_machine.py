"""A result says what it was measured on."""

from __future__ import annotations

import json

import pytest

from e2rank_rag.bench import machine as machine_module
from e2rank_rag.bench.machine import (
    bfloat16_in_hardware,
    cpu_quota,
    processor_flags,
    this_machine,
    usable_cores,
)


def test_the_machine_is_named_and_fits_into_json():
    about = json.loads(json.dumps(this_machine()))
    assert {"processor", "flags", "cores", "quota", "threads", "pools", "date"} <= about.keys()
    assert about["torch"]
    assert 1 <= about["usable_cores"] <= about["cores"]
    assert about["usable_cores"] == usable_cores()


@pytest.mark.parametrize(
    ("info", "flags", "has"),
    [
        ({"flags": "fpu avx2 avx512f"}, ["avx2", "avx512f"], False),
        ({"flags": "amx_bf16 avx2"}, ["avx2", "amx_bf16"], True),
        ({"flags": "avx512_bf16"}, ["avx512_bf16"], True),
        ({"Features": "fp asimd bf16"}, ["asimd", "bf16"], True),
        ({}, [], False),
    ],
)
def test_the_flags_say_whether_bfloat16_is_in_hardware(monkeypatch, info, flags, has):
    monkeypatch.setattr(machine_module, "_cpuinfo", lambda: info)
    assert processor_flags() == flags
    assert bfloat16_in_hardware() is has


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 0.5),
        ({}, None),
    ],
)
def test_the_quota_of_a_container_is_read_in_cores(tmp_path, files, quota):
    (tmp_path / "cpu").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert cpu_quota(tmp_path) == quota
