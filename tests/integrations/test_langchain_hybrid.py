"""Hybrid search in LangChain: collections with words, ours and langchain-qdrant's."""

from __future__ import annotations

import pytest
from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_classic.retrievers.ensemble import EnsembleRetriever
from langchain_e2rank import (
    E2RankEmbeddings,
    E2RankReranker,
    E2RankRetriever,
    E2RankVectorStore,
)
from langchain_qdrant import QdrantVectorStore, RetrievalMode, SparseEmbeddings
from langchain_qdrant.sparse_embeddings import SparseVector
from pydantic import ValidationError
from qdrant_client import QdrantClient, models

from e2rank_rag.errors import StoredVectorMismatch, StoreError
from e2rank_rag.evidence import Evidence
from e2rank_rag.pipeline import SearchPipeline
from e2rank_rag.rerankers import ListwiseReranker
from e2rank_rag.store import LANGCHAIN_LAYOUT, QdrantStore
from e2rank_rag.words import Bm25
from tests.integrations.langchain_parts import (
    IDS,
    KINDS,
    QUERY,
    TEXTS,
    EncoderEmbeddings,
    contents,
    documents,
    same,
    scores,
)

ENGLISH = Bm25(language="english")
STOCK = {"layout": LANGCHAIN_LAYOUT, "bm25": ENGLISH, "bm25_name": "langchain-sparse"}


class StockSparse(SparseEmbeddings):
    """What FastEmbedSparse is to langchain-qdrant."""

    def embed_documents(self, texts):
        return [SparseVector(indices=i, values=v) for i, v in ENGLISH.documents(texts)]

    def embed_query(self, text):
        return SparseVector(**ENGLISH.query(text)._asdict())


@pytest.fixture(scope="module")
def embeddings(tiny_bert):
    embeddings = E2RankEmbeddings(model=tiny_bert)
    yield embeddings
    embeddings.close()


@pytest.fixture(scope="module")
def store(embeddings):
    store = E2RankVectorStore.from_documents(documents(), embeddings, bm25=ENGLISH)
    yield store
    store.close()


@pytest.fixture(scope="module")
def reranker(tiny_bert):
    reranker = E2RankReranker(model=tiny_bert, top_n=None)
    yield reranker
    reranker.close()


def core(store, bert):
    return SearchPipeline(bert, store.store, ListwiseReranker(bert))


def texts(hits):
    return [hit.document.text for hit in hits]


# Our collections


@pytest.mark.parametrize("place", ["memory", "folder", "client"])
@pytest.mark.parametrize("kind", ["ours", "others"])
@pytest.mark.parametrize("run", ["sync", "async"])
async def test_a_collection_made_with_bm25_is_searched_by_words_too(
    place, kind, run, embeddings, bert, reranker, tmp_path
):
    embedding = embeddings if kind == "ours" else EncoderEmbeddings(bert)
    options = {"client": QdrantClient(":memory:")} if place == "client" else {}
    if place == "folder":
        options = {"location": tmp_path}
    make = {"embedding": embedding, "bm25": ENGLISH, **options}
    if run == "sync":
        store = E2RankVectorStore.from_texts(TEXTS, ids=IDS, **make)
    else:
        store = await E2RankVectorStore.afrom_texts(TEXTS, ids=IDS, **make)
    for hybrid in (True, "rrf", "dbsf", False):
        plain = SearchPipeline(bert, store.store).search(QUERY, top_k=4, hybrid=hybrid)
        found = (
            store.similarity_search(QUERY, hybrid=hybrid)
            if run == "sync"
            else await store.asimilarity_search(QUERY, hybrid=hybrid)
        )
        assert contents(found) == texts(plain)
    own = None if kind == "ours" else reranker
    retriever = E2RankRetriever(vectorstore=store, reranker=own, k=4, retrieve_k=5)
    found = retriever.invoke(QUERY) if run == "sync" else await retriever.ainvoke(QUERY)
    expected = core(store, bert).search(QUERY, top_k=4, retrieve_k=5, hybrid=True)
    assert contents(found) == texts(expected)
    before = [document.metadata["retrieval_score"] for document in found]
    assert before == pytest.approx([hit.retrieval_score for hit in expected], abs=1e-5)
    store.close()


@pytest.mark.parametrize("hybrid", [None, True, "rrf", "dbsf", False])
async def test_hybrid_is_a_field_and_an_argument_of_a_call(hybrid, store, bert):
    expected = core(store, bert).search(QUERY, top_k=3, retrieve_k=4, hybrid=hybrid)
    fixed = E2RankRetriever(vectorstore=store, k=3, retrieve_k=4, hybrid=hybrid)
    found = [fixed.invoke(QUERY), await fixed.ainvoke(QUERY)]
    other = E2RankRetriever(vectorstore=store, k=3, retrieve_k=4, hybrid=hybrid is False)
    if hybrid is not None:  # None in a call is the field's
        found += [other.invoke(QUERY, hybrid=hybrid), await other.ainvoke(QUERY, hybrid=hybrid)]
    for each in found:
        assert contents(each) == texts(expected)
        before = [document.metadata["retrieval_score"] for document in each]
        assert before == pytest.approx([hit.retrieval_score for hit in expected], abs=1e-5)


def test_filters_and_expand_hold_in_both_searches(store, bert):
    retriever = E2RankRetriever(vectorstore=store, k=2, retrieve_k=2, expand=True)
    expected = core(store, bert).search(QUERY, top_k=2, retrieve_k=2, expand=True, hybrid=True)
    assert contents(retriever.invoke(QUERY)) == texts(expected)
    found = retriever.invoke("cats and a ferry", filter={"kind": "traffic"})
    assert {document.metadata["kind"] for document in found} == {"traffic"}
    found = store.similarity_search("cats purr", hybrid=True, filter={"kind": KINDS[2]})
    assert {document.metadata["kind"] for document in found} == {"traffic"}


def test_scores_and_diverse_searches_compare_vectors_whatever_else_is_there(store, embeddings):
    dense = E2RankVectorStore.from_documents(documents(), embeddings)
    for search in ("similarity_search_with_score", "similarity_search_with_relevance_scores"):
        found, expected = (getattr(each, search)(QUERY, 5) for each in (store, dense))
        assert [d.id for d, _ in found] == [d.id for d, _ in expected]
        assert [s for _, s in found] == pytest.approx([s for _, s in expected])
    assert store.similarity_search(QUERY) == dense.similarity_search(QUERY)
    for kind, options in (("mmr", {"k": 3}), ("similarity_score_threshold", THRESHOLD)):
        found, expected = (
            each.as_retriever(search_type=kind, search_kwargs=options).invoke(QUERY)
            for each in (store, dense)
        )
        assert found == expected
        assert found
    # The score of a fusion is no relevance from 0 to 1.
    asked = {**THRESHOLD, "hybrid": True}
    hybrid = store.as_retriever(search_type="similarity_score_threshold", search_kwargs=asked)
    with pytest.raises(TypeError, match="hybrid"):
        hybrid.invoke(QUERY)
    dense.close()


THRESHOLD = {"score_threshold": 0.5, "k": 3}


async def test_a_collection_without_words_is_refused_where_they_are_asked_for(embeddings, bert):
    dense = E2RankVectorStore.from_documents(documents(), embeddings)
    silent = E2RankRetriever(vectorstore=dense)
    expected = core(dense, bert).search(QUERY, top_k=10, hybrid=False)
    assert contents(silent.invoke(QUERY)) == texts(expected)
    message = r"cannot be searched by words: give bm25=Bm25\(...\) when a new collection is made"
    for hybrid in (True, "dbsf"):
        with pytest.raises(StoreError, match=message):
            silent.invoke(QUERY, hybrid=hybrid)
        with pytest.raises(StoreError, match=message):
            await dense.asimilarity_search(QUERY, hybrid=hybrid)
    foreign = E2RankVectorStore(EncoderEmbeddings(bert), client=dense.store.client)
    with pytest.raises(StoreError, match=message):
        foreign.similarity_search(QUERY, hybrid=True)
    dense.close()


def test_a_wrong_hybrid_is_refused(store, bert):
    for wrong in ("both", "yes", 1.0, ["rrf"]):
        with pytest.raises(ValidationError, match="hybrid"):
            E2RankRetriever(vectorstore=store, hybrid=wrong)
    foreign = E2RankVectorStore(EncoderEmbeddings(bert), client=store.store.client)
    for search in (
        E2RankRetriever(vectorstore=store).invoke,
        store.similarity_search,
        foreign.similarity_search,
    ):
        with pytest.raises(ValueError, match="hybrid must be True, False, None or one of"):
            search(QUERY, hybrid="both")


@pytest.mark.parametrize("hybrid", [True, False, "rrf"])
def test_hybrid_is_for_a_vectorstore(hybrid, store, reranker):
    base = store.as_retriever(search_kwargs={"k": 4, "hybrid": True})
    with pytest.raises(ValueError, match="hybrid are for a vectorstore"):
        E2RankRetriever(base_retriever=base, reranker=reranker, hybrid=hybrid)
    retriever = E2RankRetriever(base_retriever=base, reranker=reranker)
    with pytest.raises(ValueError, match="hybrid are for a vectorstore"):
        retriever.invoke(QUERY, hybrid=hybrid)
    assert len(retriever.invoke(QUERY)) == 4


def test_a_document_that_is_added_again_is_found_by_its_new_words(embeddings):
    store = E2RankVectorStore.from_texts(["cats purr"], embeddings, ids=["a"], bm25=ENGLISH)
    store.add_texts(["the ferry stops"], ids=["a"])
    assert store.store.search_words_batch(["purr"], top_k=1) == [[]]
    assert len(store.store.search_words_batch(["ferry"], top_k=1)[0]) == 1
    other = E2RankVectorStore(embeddings, client=store.store.client, bm25=Bm25(language="german"))
    with pytest.raises(StoredVectorMismatch, match="german"):
        other.add_texts(["die Katzen"])
    store.close()


# langchain-qdrant's collections


def stock_store(bert, **sparse):
    """A collection that langchain-qdrant made and filled in its hybrid mode."""
    client = QdrantClient(":memory:")
    client.create_collection(
        "stock",
        vectors_config=models.VectorParams(size=bert.dim, distance=models.Distance.COSINE),
        sparse_vectors_config={"langchain-sparse": models.SparseVectorParams(**sparse)},
    )
    store = QdrantVectorStore(
        client,
        "stock",
        EncoderEmbeddings(bert),
        retrieval_mode=RetrievalMode.HYBRID,
        sparse_embedding=StockSparse(),
    )
    store.add_documents([d.model_copy(update={"id": None}) for d in documents()])
    return store


@pytest.fixture(scope="module")
def stock(bert):
    return stock_store(bert, modifier=models.Modifier.IDF)


def test_a_stock_hybrid_collection_is_searched_as_it_is(stock, embeddings, bert):
    ours = E2RankVectorStore(embeddings, client=stock.client, collection_name="stock", **STOCK)
    found = ours.similarity_search(QUERY, 8, hybrid=True)
    expected = stock.similarity_search_with_score(QUERY, 8)
    by_text = {document.page_content: score for document, score in expected}
    assert sorted(contents(found)) == sorted(by_text)
    hits = core(ours, bert).search(QUERY, top_k=8, retrieve_k=8)
    assert {h.document.text: h.retrieval_score for h in hits} == pytest.approx(by_text, abs=1e-6)
    assert same(
        E2RankRetriever(vectorstore=ours, k=8, retrieve_k=8).invoke(QUERY),
        E2RankRetriever(vectorstore=ours, k=8).invoke(QUERY),
    )


def test_the_stock_store_searches_our_hybrid_collection(embeddings, bert):
    ours = E2RankVectorStore.from_texts(TEXTS, embeddings, **STOCK)
    stock = QdrantVectorStore(
        ours.store.client,
        "documents",
        EncoderEmbeddings(bert),
        retrieval_mode=RetrievalMode.HYBRID,
        sparse_embedding=StockSparse(),
    )
    expected = SearchPipeline(bert, ours.store).search(QUERY, top_k=8, hybrid=True)
    found = stock.similarity_search_with_score(QUERY, 8)
    assert {d.page_content: s for d, s in found} == pytest.approx(
        {hit.document.text: hit.score for hit in expected}, abs=1e-6
    )
    ours.close()


def test_a_stock_collection_without_idf_is_refused_with_the_way_out(embeddings, bert):
    stock = stock_store(bert)
    ours = E2RankVectorStore(embeddings, client=stock.client, collection_name="stock", **STOCK)
    with pytest.raises(StoreError, match="no IDF modifier, so its scores are not BM25"):
        E2RankRetriever(vectorstore=ours).invoke(QUERY)
    assert E2RankRetriever(vectorstore=ours, hybrid=False).invoke(QUERY)


def bases(stock, store):
    """Retrievers that search by vectors and words, each in its way."""
    dense = QdrantVectorStore(stock.client, "stock", stock.embeddings)
    lexical = QdrantVectorStore(
        stock.client,
        "stock",
        retrieval_mode=RetrievalMode.SPARSE,
        sparse_embedding=StockSparse(),
    )
    every = [each.as_retriever(search_kwargs={"k": 5}) for each in (stock, dense, lexical)]
    return {
        "stock hybrid": every[0],
        "ensemble": EnsembleRetriever(retrievers=every[1:], id_key="_id"),
        "ours": store.as_retriever(search_kwargs={"k": 5, "hybrid": True}),
    }


@pytest.mark.parametrize("base", ["stock hybrid", "ensemble", "ours"])
async def test_candidates_of_any_hybrid_retriever_are_reranked(base, stock, store, tiny_bert, bert):
    base = bases(stock, store)[base]
    reranker = E2RankReranker(model=tiny_bert, client=stock.client, top_n=3)
    retrieved = base.invoke(QUERY)
    hits = ListwiseReranker(bert).rerank(QUERY, contents(retrieved))
    wrapped = E2RankRetriever(base_retriever=base, reranker=reranker, k=3)
    compression = ContextualCompressionRetriever(base_compressor=reranker, base_retriever=base)
    for retriever in (wrapped, compression):
        for found in (retriever.invoke(QUERY), await retriever.ainvoke(QUERY)):
            assert contents(found) == texts(hits[:3])
            assert scores(found) == pytest.approx([hit.score for hit in hits[:3]], abs=1e-5)
    reranker.close()


# Evidence


@pytest.mark.parametrize("given", [Evidence(words=0.5), {"words": 0.5}, False])
async def test_evidence_adds_to_the_cosines_as_in_the_core(given, store, bert, tiny_bert):
    evidence = given and Evidence(words=0.5)
    core = ListwiseReranker(bert, evidence=evidence)
    expected = SearchPipeline(bert, store.store, core).search(QUERY, top_k=8, hybrid=False)
    reranker = E2RankReranker(model=tiny_bert, evidence=given)
    retriever = E2RankRetriever(vectorstore=store, reranker=reranker, k=8, hybrid=False)
    for found in (retriever.invoke(QUERY), await retriever.ainvoke(QUERY)):
        assert contents(found) == texts(expected)
        assert scores(found) == pytest.approx([hit.score for hit in expected], abs=1e-5)
    again = E2RankReranker(**reranker.model_dump())
    assert again == reranker
    reranker.close()


@pytest.mark.parametrize("wrong", [True, 0.3, {"words": -1.0}, {"word": 1.0}])
def test_a_wrong_evidence_is_refused(wrong):
    with pytest.raises(ValidationError, match="evidence"):
        E2RankReranker(evidence=wrong)


def test_evidence_is_an_e2ranks(tiny_rankt5):
    reranker = E2RankReranker(model=tiny_rankt5, evidence=Evidence())
    with pytest.raises(ValueError, match="evidence: only an E2Rank has this"):
        reranker.compress_documents(documents(), QUERY)


def test_a_hybrid_store_is_the_cores(store, bert):
    assert store.store.hybrid
    assert store.store.bm25 == ENGLISH
    again = QdrantStore(store.store.client, "documents")
    assert again.bm25 == ENGLISH
