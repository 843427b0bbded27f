"""One result of all parts at the tiniest size: it fits into JSON, and has a table for each."""

from __future__ import annotations

import json

import pytest

from e2rank_rag.bench import FORMAT, PARTS, machine, tables
from e2rank_rag.bench.candidates import OURS, PROMPTLESS
from e2rank_rag.bench.encode import our_dtypes
from e2rank_rag.bench.phases import PHASES, REST
from e2rank_rag.bench.pools import CALLER, HELD, SecondPool, check
from e2rank_rag.bench.query import AS_IT_COMES, BY_HAND, CALLS
from tests.bench.sides import TINY


def test_a_result_names_what_it_was_measured_on(result):
    assert json.loads(json.dumps(result)) == result
    assert result["format"] == FORMAT
    assert list(result["parts"]) == [*PARTS]
    assert result["threads"] == 1
    assert result["machine"]["cores"] > 0
    assert all(value > 0 for peak in result["peak_gflops"].values() for value in peak.values())


def test_every_part_has_tables(result):
    made = [table.title for table in tables(result)]
    assert made[0] == "Machine"
    assert len(made) > len(PARTS)
    assert all("None" not in cell for table in tables(result) for row in table.rows for cell in row)


def test_encoding_compares_sides_of_the_same_threads_dtype_and_length(result):
    (part,) = result["parts"]["encode"]["by_threads"]
    sides = part["sides"]
    assert {"e2rank_rag float32", "e2rank_rag auto"} <= sides.keys()
    assert {row["threads"] for row in sides.values()} == {result["threads"]}
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
    assert row["share_of_peak"] == pytest.approx(
        row["gflops"] / result["peak_gflops"]["float32"]["1"]
    )


def test_a_query_is_timed_in_every_setting_and_by_phase(result):
    for part in result["parts"]["query"]["by_dtype"]:
        assert part["settings"].keys() == BY_HAND.keys()
        for row in part["settings"].values():
            assert row["ms"].keys() == {*CALLS}
            assert row["ms"]["whole"]["calls"] == TINY.rounds * TINY.queries
        assert part["best_by_hand"] != AS_IT_COMES
        assert part["phases_ms"].keys() == {*PHASES, REST, "sum"}


def test_cross_encoders_read_more_tokens_than_one_prompt(result):
    for part in result["parts"]["candidates"]["by_dtype"]:
        for sides in part["by_candidates"].values():
            assert sides[OURS]["tokens"] > 0
            for name, row in sides.items():
                if name not in (OURS, PROMPTLESS):
                    assert row["token_ratio"] == row["tokens"] / sides[OURS]["tokens"]
                    assert len(row["ours_as_fast"]["pairs"]) == TINY.rounds
        assert "LangChain" in part["sides"]
        assert part["by_candidates"]["5"][PROMPTLESS]["tokens"] < sides[OURS]["tokens"]


@pytest.mark.parametrize(
    ("flags", "dtypes"),
    [([], ["float32", "auto"]), (["amx_bf16"], ["float32", "bfloat16", "auto"])],
)
def test_bfloat16_is_measured_where_the_processor_has_it(monkeypatch, flags, dtypes):
    monkeypatch.setattr(machine, "processor_flags", lambda: flags)
    assert our_dtypes() == dtypes


def test_a_deeper_prompt_holds_more_documents_until_no_more_fit(result):
    by_depth = result["parts"]["depth"]["by_depth"]
    assert [*by_depth] == [str(depth) for depth in TINY.depths]
    assert by_depth["0"]["documents"] == 0
    assert 0 < by_depth["2"]["documents"] <= 2
    assert (
        by_depth["0"]["tokens"] < by_depth["2"]["tokens"] <= result["parts"]["depth"]["positions"]
    )


def test_engines_are_searched_by_vector_and_by_words_and_a_missing_server_is_said(result):
    part = result["parts"]["engines"]
    assert part["missing"] == {"server": "no --url"}
    for engines in part["by_documents"].values():
        names = {f"{name} {kind}" for name in ("memory", "folder") for kind in ("vector", "hybrid")}
        assert engines.keys() == names


def test_a_second_pool_that_costs_more_than_the_limit_is_an_error(result):
    part = result["parts"]["pools"]
    assert part["sides"].keys() == {AS_IT_COMES, HELD, CALLER}
    check({**part, "as_it_comes_over_held": {"median": 1.15}})
    with pytest.raises(SecondPool, match=r"1\.16 times as long"):
        check({**part, "as_it_comes_over_held": {"median": 1.16}})
