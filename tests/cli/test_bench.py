"""`e2rank bench`: what it measures, what it writes, and how it fails."""

from __future__ import annotations

import json

import pytest

from e2rank_rag import bench
from e2rank_rag.bench import pools, settings
from e2rank_rag.models import cpu
from tests.bench.sides import TINY, Here


@pytest.fixture
def quick(monkeypatch, tiny_bert):
    """The options of a call that measures next to nothing, in the process of the test."""
    monkeypatch.setattr(bench, "ProcessSide", Here)
    monkeypatch.setattr(cpu, "has_bfloat16", bool)
    monkeypatch.setattr(settings, "FULL", TINY)
    return ["bench", "--full", "--threads", 1, "--model", tiny_bert]


def test_the_chosen_parts_are_printed_and_written(run, quick, tmp_path):
    file, plots = tmp_path / "bench.json", tmp_path / "plots"
    code, out, err = run(*quick, "--only", "engines, depth", "--json", file, "--plots", plots)
    assert code == 0
    assert "Documents in the prompt" in out
    assert "Not measured: server (no --url)" in out
    written = json.loads(file.read_text())
    assert [*written["parts"]] == ["depth", "engines"]
    assert sorted(path.name for path in plots.iterdir()) == ["depth.svg", "engines.svg"]
    assert "depth.svg" in err


def test_an_unknown_part_is_wrong_usage(run, quick):
    code, _, err = run(*quick, "--only", "encode,nothing")
    assert code == 2
    assert "encode, query, candidates, depth, engines, pools, neighbour" in err
    assert "nothing" in err


def test_a_second_pool_that_costs_too_much_fails(run, quick, monkeypatch):
    monkeypatch.setattr(pools, "MOST", 0.001)
    code, out, err = run(*quick, "--only", "pools")
    assert code == 1
    assert "a second pool of threads makes a query take" in err
    assert "second pools held at one thread" in out


def test_a_folder_in_the_place_of_the_file_is_refused_before_measuring(run, quick, tmp_path):
    code, out, err = run(*quick, "--json", tmp_path)
    assert code == 1
    assert "name a file in it" in err
    assert not out


def test_a_folder_that_holds_no_dataset_is_refused_before_measuring(run, quick, tmp_path):
    code, out, err = run(*quick, "--data", tmp_path, "--json", tmp_path / "bench.json")
    assert code == 1
    assert str(tmp_path) in err
    assert not out
    assert not (tmp_path / "bench.json").exists()
