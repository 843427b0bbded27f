"""Hybrid search in Haystack: who writes the words, who reads them, and in which collections."""

from __future__ import annotations

import asyncio
import copy
import pickle
from dataclasses import replace

import numpy as np
import pytest
from haystack import Document, Pipeline
from haystack.components.writers import DocumentWriter
from haystack.dataclasses import SparseEmbedding
from haystack_integrations.components.embedders.e2rank import (
    E2RankDocumentEmbedder,
    E2RankTextEmbedder,
)
from haystack_integrations.components.rankers.e2rank import E2RankRanker
from haystack_integrations.components.retrievers.e2rank import E2RankRetriever
from haystack_integrations.components.retrievers.qdrant import QdrantHybridRetriever

from e2rank_rag import types
from e2rank_rag.errors import StoredVectorMismatch, StoreError
from e2rank_rag.evidence import Evidence
from e2rank_rag.indexing import index_documents
from e2rank_rag.models.encoder import Encoder
from e2rank_rag.pipeline import SearchPipeline
from e2rank_rag.rerankers import ListwiseReranker
from e2rank_rag.store import QdrantStore
from e2rank_rag.words import Bm25
from tests.integrations.haystack_kit import (
    QUERY,
    TEXTS,
    alike,
    documents,
    folder_store,
    ids,
    memory_store,
    scores,
)
from tests.kit import ids as core_ids

SPARSE = {"use_sparse_embeddings": True, "sparse_idf": True}
ENGLISH = Bm25(language="english")


@pytest.fixture(scope="module")
def worded(embedded):
    """The documents with both vectors, as E2RankDocumentEmbedder with `bm25` gives them."""
    words = ENGLISH.documents(TEXTS)
    return [
        replace(document, sparse_embedding=SparseEmbedding(*vector))
        for document, vector in zip(embedded, words, strict=True)
    ]


@pytest.fixture(scope="module")
def store(worded):
    store = memory_store(32, worded, **SPARSE)
    yield store
    store.close()


@pytest.fixture(scope="module")
def core(store, tiny_bert):
    """The same search without Haystack."""
    ours = QdrantStore(
        store._client, "docs", vector_name="text-dense", bm25=ENGLISH, bm25_name="text-sparse"
    )
    with Encoder.from_pretrained(tiny_bert) as encoder:
        yield SearchPipeline(encoder, ours, ListwiseReranker(encoder))


@pytest.fixture
def made(tiny_bert):
    """Makes retrievers of the tiny model that are closed in the end."""
    every = []

    def make(store, **options):
        every.append(E2RankRetriever(store, model=tiny_bert, **options))
        return every[-1]

    yield make
    for component in every:
        component.close()


def retrieved(retriever, query=QUERY, **options):
    """The scores before reranking, by id."""
    answer = retriever.run(query=query, **options)
    return {d.id: d.meta["retrieval_score"] for d in answer["documents"]}


def fused(*rankings):
    """Reciprocal rank fusion as Qdrant computes it: each rank, from 0, gives 1 / (rank + 2)."""
    total = {}
    for ranking in rankings:
        for rank, id in enumerate(ranking):
            total[id] = total.get(id, 0.0) + 1 / (rank + 2)
    return pytest.approx(total, abs=1e-6)


# Writing


@pytest.mark.parametrize("given", [ENGLISH, {"language": "english"}])
def test_the_document_embedder_gives_the_words_of_meta_fields_and_content(tiny_bert, given):
    embedder = E2RankDocumentEmbedder(
        model=tiny_bert, bm25=given, meta_fields_to_embed=["title"], prefix="p ", suffix=" s"
    )
    document = Document(content="cats sleep", meta={"title": "The stove"})
    answer = embedder.run([document, Document(content="the of")])["documents"]
    expected = ENGLISH.documents(["The stove\ncats sleep", "the of"])
    assert [tuple(d.sparse_embedding.to_dict().values()) for d in answer] == expected
    assert document.sparse_embedding is None
    embedder.bm25 = None
    assert embedder.run([document])["documents"][0].sparse_embedding is None
    embedder.close()


async def test_the_text_embedder_gives_the_words_of_the_query(tiny_bert):
    embedder = E2RankTextEmbedder(model=tiny_bert, bm25=ENGLISH, prefix="query: ")
    answer = embedder.run(QUERY)
    assert answer["sparse_embedding"] == SparseEmbedding(*ENGLISH.query(QUERY))
    assert alike(await embedder.run_async(QUERY), answer)
    embedder.bm25 = None
    assert list(embedder.run(QUERY)) == ["embedding"]
    embedder.close()


@pytest.mark.parametrize("place", ["memory", "folder"])
@pytest.mark.parametrize("run", ["sync", "async"])
def test_what_the_stock_writer_wrote_is_searched_by_both(place, run, core, tiny_bert, tmp_path):
    options = {**SPARSE}
    store = memory_store(32, **options) if place == "memory" else folder_store(tmp_path, **options)
    indexing = Pipeline()
    indexing.add_component("embedder", E2RankDocumentEmbedder(model=tiny_bert, bm25=ENGLISH))
    indexing.add_component("writer", DocumentWriter(store))
    indexing.connect("embedder", "writer")
    indexing.run({"embedder": {"documents": [*documents(), Document(id="none", content="of the")]}})
    retriever = E2RankRetriever(store, model=tiny_bert, bm25=ENGLISH)
    arguments = {"query": QUERY, "filters": {"field": "meta.number", "operator": ">=", "value": 0}}
    if run == "sync":
        answer = retriever.run(**arguments)
    else:
        answer = asyncio.run(retriever.run_async(**arguments))
    expected = core.search(QUERY, top_k=10, hybrid="rrf")
    assert ids(answer) == [hit.document.id for hit in expected]
    np.testing.assert_allclose(scores(answer), [hit.score for hit in expected], atol=1e-5)
    before = [document.meta["retrieval_score"] for document in answer["documents"]]
    np.testing.assert_allclose(before, [hit.retrieval_score for hit in expected], atol=1e-5)
    for component in (indexing.get_component("embedder"), retriever):
        component.close()
    store.close()


def test_what_our_indexing_wrote_says_itself_that_it_holds_words(made, tiny_bert):
    store = memory_store(32, **SPARSE)
    store._initialize_client()
    client = store._client
    client.delete_collection("docs")
    ours = QdrantStore(
        client, "docs", vector_name="text-dense", bm25=ENGLISH, bm25_name="text-sparse"
    )
    with Encoder.from_pretrained(tiny_bert) as encoder:
        corpus = [types.Document(f"d{n}", text) for n, text in enumerate(TEXTS)]
        index_documents(corpus, encoder, ours)
        dense = ours.search(encoder.encode_queries([QUERY])[0], top_k=12)
    lexical = ours.search_words_batch([QUERY], top_k=12)[0]
    assert len(store.filter_documents()) == 12
    retriever = made(store, top_k=12)
    assert retrieved(retriever) == fused(core_ids(dense), core_ids(lexical))
    cosines = {hit.document.id: hit.score for hit in dense}
    assert retrieved(retriever, hybrid=False) == pytest.approx(cosines, abs=1e-6)
    assert alike(made(ours, top_k=12).run(query=QUERY), retriever.run(query=QUERY))
    german = made(store, bm25=Bm25(language="german"))
    with pytest.raises(StoredVectorMismatch, match=r"english.*german"):
        german.run(query=QUERY)
    store.close()


@pytest.mark.parametrize("place", ["memory", "folder"])
async def test_an_index_with_the_default_names_is_a_haystack_store_as_it_is(
    place, made, tiny_bert, tmp_path
):
    query = "yeast in bread"  # no two documents have the same BM25 score
    location = ":memory:" if place == "memory" else tmp_path
    ours = QdrantStore.open(location, "docs", bm25=ENGLISH)
    with Encoder.from_pretrained(tiny_bert) as encoder:
        corpus = [types.Document(f"d{n}", text) for n, text in enumerate(TEXTS)]
        index_documents(corpus, encoder, ours)
        expected = SearchPipeline(encoder, ours).search(query, top_k=12, hybrid=True)
    store = memory_store(32) if place == "memory" else folder_store(tmp_path)
    if place == "memory":
        store._client = ours.client
    else:
        ours.close()
    known = pytest.approx({hit.document.id: hit.score for hit in expected}, abs=1e-5)
    retriever = made(store, top_k=12)
    for answer in (retriever.run(query=query), await retriever.run_async(query=query)):
        assert {d.id: d.meta["retrieval_score"] for d in answer["documents"]} == known
    retriever.close()
    assert len(store.filter_documents()) == 12
    store.close()


@pytest.mark.parametrize("hybrid", [None, True, False])
async def test_any_store_with_hybrid_search_is_searched_so(hybrid, core, made):
    class Wrapped:
        """A store that is no QdrantStore."""

        def __getattr__(self, name):
            return getattr(core.store, name)

    retriever = made(Wrapped(), hybrid=hybrid, top_k=5, meta_fields_to_embed=["number"])
    retriever.stored_vectors = "trust"
    expected = core.search(QUERY, top_k=12, hybrid=hybrid)
    known = {hit.document.id: hit.retrieval_score for hit in expected}
    for answer in (retriever.run(query=QUERY), await retriever.run_async(query=QUERY)):
        before = {d.id: d.meta["retrieval_score"] for d in answer["documents"]}
        assert before == pytest.approx({id: known[id] for id in before}, abs=1e-5)


# Searching


@pytest.mark.parametrize("hybrid", [None, True, "rrf", "dbsf", False])
async def test_hybrid_is_the_pipelines_at_construction_and_in_a_call(hybrid, store, made, core):
    expected = core.search(QUERY, top_k=5, retrieve_k=6, hybrid=hybrid)
    fixed = made(store, bm25=ENGLISH, hybrid=hybrid, top_k=5, retrieve_k=6)
    other = made(store, bm25=ENGLISH, hybrid=hybrid is False, top_k=5, retrieve_k=6)
    answers = [fixed.run(query=QUERY), await fixed.run_async(query=QUERY)]
    if hybrid is not None:  # None in a call is the construction's
        answers += [other.run(query=QUERY, hybrid=hybrid)]
    for answer in answers:
        assert ids(answer) == [hit.document.id for hit in expected]
        before = [document.meta["retrieval_score"] for document in answer["documents"]]
        np.testing.assert_allclose(before, [hit.retrieval_score for hit in expected], atol=1e-5)


def test_sparse_vectors_of_which_nobody_says_what_they_hold_are_not_searched(store, made):
    silent = made(store, top_k=12)
    dense = made(store, bm25=ENGLISH, hybrid=False, top_k=12)
    assert alike(silent.run(query=QUERY), dense.run(query=QUERY))
    for hybrid in (True, "rrf", "dbsf"):
        with pytest.raises(StoreError, match=r"cannot be searched by words: give bm25=Bm25"):
            silent.run(query=QUERY, hybrid=hybrid)


def test_a_collection_without_idf_is_refused_and_not_searched_half(worded, made):
    store = memory_store(32, worded, use_sparse_embeddings=True)
    with pytest.raises(StoreError, match=r"'text-sparse'.*no IDF modifier"):
        made(store, bm25=ENGLISH).run(query=QUERY)
    assert len(ids(made(store, bm25=ENGLISH, hybrid=False).run(query=QUERY))) == 10
    store.close()


def test_bm25_for_a_store_that_it_does_not_describe_is_refused(embedded, tiny_bert):
    dense = memory_store(32, embedded)
    ours = QdrantStore.open(":memory:", "docs")
    arguments = {"location": ":memory:", "collection": "docs"}
    with pytest.raises(ValueError, match="use_sparse_embeddings=True"):
        E2RankRetriever(dense, model=tiny_bert, bm25=ENGLISH)
    for given in (ours, arguments):
        with pytest.raises(ValueError, match="bm25_name of their own"):
            E2RankRetriever(given, model=tiny_bert, bm25=ENGLISH)
    later = E2RankRetriever(dense, model=tiny_bert)
    later.bm25 = ENGLISH
    with pytest.raises(ValueError, match="use_sparse_embeddings=True"):
        later.run(query=QUERY)
    dense.close()


@pytest.mark.parametrize("wrong", ["both", 2, "RRF", ["rrf"]])
def test_an_unknown_hybrid_is_refused(wrong, store, made):
    with pytest.raises(ValueError, match="hybrid must be True, False, None or one of"):
        made(store, hybrid=wrong)
    with pytest.raises(ValueError, match="hybrid must be True, False, None or one of"):
        made(store).run(query=QUERY, hybrid=wrong)


@pytest.mark.parametrize("wrong", [{"language": "klingon"}, {"k": 1}, "english"])
def test_an_unknown_bm25_is_refused(wrong, store, made):
    for make in (lambda: made(store, bm25=wrong), lambda: E2RankDocumentEmbedder(bm25=wrong)):
        with pytest.raises(ValueError, match="Bm25"):
            make()


def test_expand_and_groups_take_the_candidates_of_both_searches(store, made, core):
    retriever = made(store, bm25=ENGLISH, expand=True, top_k=3, retrieve_k=3)
    expected = core.search(QUERY, top_k=3, retrieve_k=3, expand=True, hybrid=True)
    assert ids(retriever.run(query=QUERY)) == [hit.document.id for hit in expected]
    grouped = made(store, bm25=ENGLISH, group_by="number", top_k=12)
    assert sorted(ids(grouped.run(query=QUERY))) == sorted(f"d{n}" for n in range(12))


# YAML


@pytest.mark.parametrize("kind", ["haystack", "ours", "dict"])
def test_a_hybrid_pipeline_comes_back_from_yaml(kind, worded, tiny_bert, tmp_path):
    store = folder_store(tmp_path, **SPARSE)
    store.write_documents(worded)
    store.close()
    named = {"vector_name": "text-dense", "bm25_name": "text-sparse"}
    given, options = {
        "haystack": (folder_store(tmp_path, **SPARSE), {"bm25": ENGLISH}),
        "ours": (QdrantStore.open(tmp_path, "docs", bm25=ENGLISH, **named), {}),
        "dict": (
            {"location": str(tmp_path), "collection": "docs", "bm25": {}, **named},
            {},
        ),
    }[kind]
    pipeline = Pipeline()
    retriever = E2RankRetriever(
        given, model=tiny_bert, hybrid="dbsf", evidence=Evidence(words=0.5), **options
    )
    pipeline.add_component("retriever", retriever)
    answer = pipeline.run({"retriever": {"query": QUERY}})
    text = pipeline.dumps()
    retriever.close()
    if kind == "ours":
        given.close()
    again = Pipeline.loads(text)
    restored = again.get_component("retriever")
    assert (restored.hybrid, restored.evidence) == ("dbsf", Evidence(words=0.5))
    assert restored.bm25 == (ENGLISH if kind == "haystack" else None)
    assert again.dumps() == text
    assert alike(again.run({"retriever": {"query": QUERY}}), answer)
    restored.close()


@pytest.mark.parametrize("kind", [E2RankDocumentEmbedder, E2RankTextEmbedder])
def test_an_embedder_comes_back_from_yaml_with_its_words(kind):
    german = Bm25(language="german", stop_words=("die",))
    pipeline = Pipeline()
    pipeline.add_component("embedder", kind(bm25=german))
    again = Pipeline.loads(pipeline.dumps()).get_component("embedder")
    assert again.bm25 == german
    assert copy.deepcopy(again).bm25 == pickle.loads(pickle.dumps(again)).bm25 == german


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))]
)
def test_a_copy_of_a_hybrid_retriever_is_hybrid(copied, worded, tiny_bert, tmp_path):
    store = folder_store(tmp_path, **SPARSE)
    store.write_documents(worded)
    store.close()
    store = folder_store(tmp_path, **SPARSE)
    first = E2RankRetriever(store, model=tiny_bert, bm25=ENGLISH, evidence=False)
    answer = first.run(query=QUERY)
    first.close()
    second = copied(first)
    assert (second.bm25, second.evidence) == (ENGLISH, False)
    assert alike(second.run(query=QUERY), answer)
    second.close()


def test_a_dict_with_a_wrong_bm25_is_refused():
    given = {"location": ":memory:", "collection": "docs", "bm25": {"language": "klingon"}}
    with pytest.raises(ValueError, match="language must be one of"):
        E2RankRetriever(given)


# Candidates of the stock hybrid retriever


@pytest.mark.parametrize("carried", [True, False])
def test_a_ranker_reranks_what_the_stock_hybrid_retriever_retrieved(
    carried, store, core, tiny_bert
):
    chain = Pipeline()
    chain.add_component("embedder", E2RankTextEmbedder(model=tiny_bert, bm25=ENGLISH))
    stock = QdrantHybridRetriever(store, top_k=20, return_embedding=carried)
    chain.add_component("retriever", stock)
    ranker = E2RankRanker(model=tiny_bert, top_k=20, document_store=None if carried else store)
    chain.add_component("ranker", ranker)
    chain.connect("embedder.embedding", "retriever.query_embedding")
    chain.connect("embedder.sparse_embedding", "retriever.query_sparse_embedding")
    chain.connect("retriever", "ranker")
    run = chain.run(
        {"embedder": {"text": QUERY}, "ranker": {"query": QUERY}},
        include_outputs_from={"retriever"},
    )
    candidates = ids(run["retriever"])
    assert max(scores(run["retriever"])) > 0.5  # RRF, not cosines
    expected = core.search(QUERY, top_k=20, candidates=candidates)
    assert ids(run["ranker"]) == [hit.document.id for hit in expected]
    np.testing.assert_allclose(scores(run["ranker"]), [hit.score for hit in expected], atol=1e-5)
    assert run["ranker"]["meta"]["encoded"] == 0
    before = {document.id: document.score for document in run["retriever"]["documents"]}
    assert before == {d.id: d.meta["retrieval_score"] for d in run["ranker"]["documents"]}
    for name in ("embedder", "ranker"):
        chain.get_component(name).close()


# Evidence


WORDS = Evidence(words=0.5, expansion=0.0)


@pytest.mark.parametrize("given", [WORDS, {"words": 0.5, "expansion": 0}])
async def test_evidence_adds_to_the_cosines_as_in_the_core(given, store, core, made, worded):
    reranker = ListwiseReranker(core.encoder, evidence=WORDS)
    pipeline = SearchPipeline(core.encoder, core.store, reranker)
    expected = pipeline.search(QUERY, top_k=12, hybrid=False)
    retriever = made(store, evidence=given, top_k=12)
    ranker = E2RankRanker(model=retriever.model, evidence=given, top_k=12)
    nearest = SearchPipeline(core.encoder, core.store).search(QUERY, top_k=12, hybrid=False)
    by_id = {document.id: document for document in worded}
    candidates = [by_id[id] for id in core_ids(nearest)]
    answers = [
        retriever.run(query=QUERY),
        await retriever.run_async(query=QUERY),
        ranker.run(query=QUERY, documents=candidates),
    ]
    for answer in answers:
        np.testing.assert_allclose(
            sorted(scores(answer)), sorted(hit.score for hit in expected), atol=1e-5
        )
    plain = made(store, evidence=False, top_k=12).run(query=QUERY)
    assert max(scores(plain)) <= 1.0 + 1e-6
    assert not np.allclose(sorted(scores(plain)), sorted(scores(answers[0])))
    ranker.close()


@pytest.mark.parametrize("wrong", [True, 0.3, {"words": -1}, {"word": 1}])
def test_an_unknown_evidence_is_refused(wrong):
    with pytest.raises(ValueError, match="Evidence"):
        E2RankRanker(evidence=wrong)


def test_evidence_is_an_e2ranks(tiny_rankt5):
    ranker = E2RankRanker(model=tiny_rankt5, evidence=Evidence())
    with pytest.raises(ValueError, match=r"^evidence: only an E2Rank has this"):
        ranker.run(query=QUERY, documents=documents())
    ranker.close()
