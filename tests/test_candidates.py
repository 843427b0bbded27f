"""A document that was retrieved twice is ranked once, by every reranker and framework."""

from __future__ import annotations

from dataclasses import replace
from math import inf, nan

import numpy as np
import pytest
from haystack import Document as HaystackDocument
from haystack_integrations.components.rankers.e2rank import E2RankRanker
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.documents import Document as LangChainDocument
from langchain_e2rank import E2RankReranker

from e2rank_rag.candidates import checked_lists, each_once, without_copies
from e2rank_rag.models.encoder import Encoder
from e2rank_rag.pipeline import SearchPipeline
from e2rank_rag.rerankers import ListwiseReranker, RocchioReranker, load_reranker
from e2rank_rag.store import QdrantStore
from e2rank_rag.types import Document, Hit

QUERY = "which animals purr?"
TEXTS = ["cats purr and sleep", "dogs bark and dig", "the ferry leaves at six"]
# What two searches for the same three documents have retrieved.
RETRIEVED = [("d1", 0.2), ("d0", 0.5), ("d1", 0.9), ("d2", 0.4), ("d0", 0.1)]


def text_of(id):
    return TEXTS[int(id[1:])]


def as_core(model, retrieved):
    with load_reranker(model) as reranker:
        hits = reranker.rerank(QUERY, [Hit(Document(i, text_of(i)), s) for i, s in retrieved])
    return [(hit.document.id, hit.score) for hit in hits]


def as_haystack(model, retrieved):
    ranker = E2RankRanker(model=model)
    found = [HaystackDocument(id=i, content=text_of(i), score=s) for i, s in retrieved]
    ranked = ranker.run(query=QUERY, documents=found)["documents"]
    ranker.close()
    return [(document.id, document.score) for document in ranked]


def as_langchain(model, retrieved):
    reranker = E2RankReranker(model=model, top_n=None)
    found = [LangChainDocument(id=i, page_content=text_of(i)) for i, _ in retrieved]
    ranked = reranker.compress_documents(found, QUERY)
    reranker.close()
    return [(document.id, document.metadata["relevance_score"]) for document in ranked]


@pytest.mark.parametrize("system", ["tiny_bert", "tiny_resrank", "tiny_rankt5"])
@pytest.mark.parametrize("rank", [as_core, as_haystack, as_langchain])
def test_one_rule_for_a_document_that_was_retrieved_twice(system, rank, request):
    model = request.getfixturevalue(system)
    once = [("d1", 0.9), ("d0", 0.5), ("d2", 0.4)]
    found, expected = rank(model, RETRIEVED), rank(model, once)
    assert [id for id, _ in found] == [id for id, _ in expected]
    assert [s for _, s in found] == pytest.approx([s for _, s in expected], abs=1e-5)


@pytest.mark.parametrize("kind", [ListwiseReranker, RocchioReranker])
def test_no_prompt_shows_a_copy_and_the_best_score_stays(kind, bert, monkeypatch):
    shown = []
    encode = Encoder.encode_listwise

    def listwise(encoder, queries, texts, **options):
        shown.extend(texts)
        return encode(encoder, queries, texts, **options)

    monkeypatch.setattr(Encoder, "encode_listwise", listwise)
    hits = [Hit(Document(id, text_of(id)), score) for id, score in RETRIEVED]
    ranking = kind(bert).rerank(QUERY, hits)
    assert all(len(set(texts)) == len(texts) for texts in shown)
    kept = {hit.document.id: hit.retrieval_score for hit in ranking}
    assert kept == {"d0": 0.5, "d1": 0.9, "d2": 0.4}


@pytest.mark.parametrize("kind", [None, ListwiseReranker])
def test_candidates_of_a_pipeline_are_ranked_once(kind, bert):
    store = QdrantStore.open(":memory:", "docs")
    store.prepare(bert.dim, fingerprint=bert.fingerprint)
    documents = [Document(f"d{place}", text) for place, text in enumerate(TEXTS)]
    store.upsert(documents, bert.encode_documents(TEXTS))
    pipeline = SearchPipeline(bert, store, kind and kind(bert))
    ids = [id for id, _ in RETRIEVED]
    for candidates in (ids, [Hit(Document(id, text_of(id)), 1.0) for id in ids]):
        for expand in {False, kind is not None}:
            found = pipeline.search(QUERY, candidates=candidates, expand=expand)
            assert sorted(hit.document.id for hit in found) == ["d0", "d1", "d2"]
    store.close()


def test_a_copy_without_its_vector_takes_that_of_the_same_text():
    vector = np.array([1.0, 0.0], dtype=np.float32)
    dense = Hit(Document("a", "cats"), 0.3, vector, source="docs")
    (kept,) = without_copies([dense, Hit(Document("a", "cats"), 12.5)])
    assert (kept.score, kept.source) == (12.5, "docs")
    assert kept.embedding is vector
    (kept,) = without_copies([dense, Hit(Document("a", "cats, rewritten"), 12.5)])
    assert kept.embedding is None


SCORES = st.none() | st.just(nan) | st.floats(allow_nan=False)


@given(st.lists(st.tuples(st.sampled_from("abc"), SCORES), max_size=8))
def test_of_each_id_the_first_place_and_the_best_score_stay(candidates):
    kept = each_once(candidates, lambda item: item[0], lambda item: item[1])
    assert [id for id, _ in kept] == list(dict.fromkeys(id for id, _ in candidates))
    for id, score in kept:
        scores = [s for i, s in candidates if i == id and s is not None and s == s]
        assert (-inf if score is None or score != score else score) == max(scores, default=-inf)


def test_inputs_stay_as_they_are_and_each_query_needs_a_list():
    hits = [Hit(Document(id, text_of(id)), score) for id, score in RETRIEVED]
    before = [replace(hit) for hit in hits]
    checked_lists([QUERY], [hits])
    assert hits == before
    with pytest.raises(ValueError, match="2 queries came with 1 candidate lists"):
        checked_lists([QUERY, QUERY], [hits])
