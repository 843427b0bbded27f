"""Ours and cross-encoders answer the same queries."""

from __future__ import annotations

from e2rank_rag.bench.candidates import OURS, PROMPTLESS
from tests.bench.sides import TINY


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
