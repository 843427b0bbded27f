"""The phases of a query add up, and timing leaves nothing behind."""

from __future__ import annotations

import pytest

from e2rank_rag import Evidence, SearchPipeline, rerankers
from e2rank_rag.bench.pairs import timed
from e2rank_rag.bench.phases import PHASES, REST, Stopwatch, located
from e2rank_rag.rerankers import EvidenceReranker, ListwiseReranker, ranking
from e2rank_rag.types import Document
from tests.kit import filled_store


@pytest.mark.parametrize("name", [name for names in PHASES.values() for name in names])
def test_every_named_function_is_there(name):
    *_, found = located(name)
    assert callable(getattr(found, "__func__", found))


def test_a_name_that_is_gone_is_an_error():
    with pytest.raises(AttributeError, match="gone"):
        located("evidence:Evidence.gone")


def test_the_phases_add_up_to_the_whole_query(bert):
    documents = [
        Document(str(place), text) for place, text in enumerate(["cats purr", "dogs bark"])
    ]
    store = filled_store(bert, documents)
    pipeline = SearchPipeline(bert, store, ListwiseReranker(bert, evidence=Evidence()))
    before = {name: located(name)[2] for names in PHASES.values() for name in names}
    watch = Stopwatch()

    def whole():
        with watch.measured():
            return pipeline.search("who purrs?")

    found = timed(whole)
    store.close()
    assert [hit.document.id for hit in found.result]
    assert watch.seconds.keys() == {*PHASES, REST}
    assert all(seconds > 0 for seconds in watch.seconds.values()), watch.seconds
    assert sum(watch.seconds.values()) <= found.wall
    assert {name: located(name)[2] for name in before} == before
    assert rerankers.evidence.rank is ranking.rank


def test_an_error_inside_takes_the_timers_away(bert):
    watch = Stopwatch()
    with pytest.raises(ValueError, match="empty"), watch.measured():
        bert.encode_queries([""])
    assert not watch._running
    assert located("rerankers.ranking:rank")[2] is EvidenceReranker.rerank_batch.__globals__.get(
        "rank", ranking.rank
    )
