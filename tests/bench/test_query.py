"""A query is timed as a whole and by phase."""

from __future__ import annotations

from e2rank_rag.bench.phases import PHASES, REST
from e2rank_rag.bench.query import AS_IT_COMES, BY_HAND, CALLS
from tests.bench.sides import TINY


def test_a_query_is_timed_in_every_setting_and_by_phase(result):
    for part in result["parts"]["query"]["by_dtype"]:
        assert part["settings"].keys() == BY_HAND.keys()
        for row in part["settings"].values():
            assert row["ms"].keys() == {*CALLS}
            assert row["ms"]["whole"]["calls"] == TINY.rounds * TINY.queries
        assert part["best_by_hand"] != AS_IT_COMES
        assert part["phases_ms"].keys() == {"vector", "hybrid"}
        for phases in part["phases_ms"].values():
            assert phases.keys() == {*PHASES, REST, "sum"}
