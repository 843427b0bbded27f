"""Explanations in Haystack's meta and in LangChain's metadata: the core's own, as plain values."""

from __future__ import annotations

import asyncio
import json

import pytest
from haystack import Pipeline
from haystack_integrations.components.rankers.e2rank import E2RankRanker
from haystack_integrations.components.retrievers.e2rank import E2RankRetriever as HaystackRetriever
from langchain_core.documents import Document
from langchain_core.runnables import RunnableLambda
from langchain_e2rank import E2RankEmbeddings, E2RankReranker, E2RankRetriever, E2RankVectorStore

from e2rank_rag.pipeline import SearchPipeline
from e2rank_rag.rerankers import ListwiseReranker
from e2rank_rag.store import QdrantStore
from tests.encoders import TEXTS
from tests.integrations.haystack_kit import QUERY, memory_store
from tests.integrations.haystack_kit import TEXTS as HAYSTACK_TEXTS
from tests.integrations.haystack_kit import documents as haystack_documents

ASKED = "where does the ferry go?"


def plain(document):
    """What an explanation says, less its last digits."""
    data = (document.meta if hasattr(document, "meta") else document.metadata)["explanation"]
    assert json.loads(json.dumps(data)) == data
    return rounded(data)


def rounded(value):
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return pytest.approx(value, abs=1e-5) if isinstance(value, float) else value


def expected(ranking, **changes):
    return [{**hit.explanation.as_dict(), **changes} for hit in ranking]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_haystacks_ranker_explains_what_the_core_does(bert, tiny_bert, asynchronous):
    with_scores = [
        each if number else haystack_documents(score=0.5)[0]
        for number, each in enumerate(haystack_documents())
    ]
    ranker = E2RankRanker(model=tiny_bert, explain=True, top_k=3)
    call = ranker.run_async if asynchronous else ranker.run
    answer = call(query=QUERY, documents=with_scores)
    answer = asyncio.run(answer) if asynchronous else answer
    ranker.close()
    ranking = ListwiseReranker(bert).rerank(QUERY, HAYSTACK_TEXTS, explain=True)[:3]
    for document, data in zip(answer["documents"], expected(ranking), strict=True):
        data["pulls"] = [{**pull, "id": f"d{pull['id']}"} for pull in data["pulls"]]
        data["score_before"] = 0.5 if document.id == "d0" else None
        assert plain(document) == data
        assert sum(document.meta["explanation"]["parts"].values()) == pytest.approx(document.score)


def test_haystacks_retriever_explains_what_the_core_does(bert, tiny_bert, embedded):
    store = memory_store(32, embedded)
    core = SearchPipeline(bert, QdrantStore(store._client, "docs"), ListwiseReranker(bert))
    ranking = core.search(QUERY, top_k=3, explain=True)
    with_data = HaystackRetriever(store, model=tiny_bert, top_k=3, explain=True)
    found = with_data.run(query=QUERY)["documents"]
    assert [plain(document) for document in found] == expected(ranking)
    without = HaystackRetriever(store, model=tiny_bert, top_k=3)
    assert all("explanation" not in each.meta for each in without.run(query=QUERY)["documents"])
    for retriever in (with_data, without):
        retriever.close()
    store.close()


def test_yaml_keeps_that_explanations_are_asked_for():
    pipeline = Pipeline()
    pipeline.add_component("ranker", E2RankRanker(explain=True))
    assert Pipeline.loads(pipeline.dumps()).get_component("ranker").explain is True


@pytest.mark.parametrize("asynchronous", [False, True])
def test_langchains_reranker_explains_what_the_core_does(bert, tiny_bert, asynchronous):
    documents = [Document(id=str(n), page_content=text) for n, text in enumerate(TEXTS)]
    reranker = E2RankReranker(model=tiny_bert, explain=True, score_key=None)
    call = reranker.acompress_documents if asynchronous else reranker.compress_documents
    found = call(documents, ASKED)
    found = asyncio.run(found) if asynchronous else found
    ranking = ListwiseReranker(bert).rerank(ASKED, TEXTS, explain=True)[:3]
    assert [plain(document) for document in found] == expected(ranking)
    assert [list(document.metadata) for document in found] == [["explanation"]] * 3
    assert all(document.metadata == {} for document in documents)
    reranker.close()


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("explain", [False, True])
def test_langchains_retriever_decides_whether_its_documents_are_explained(
    bert, tiny_bert, explain, asynchronous
):
    embeddings = E2RankEmbeddings(model=tiny_bert)
    store = E2RankVectorStore.from_texts(TEXTS, embeddings, ids=[str(n) for n in range(6)])
    other = E2RankReranker(model=tiny_bert, explain=not explain)
    given = RunnableLambda(lambda query: store.similarity_search(query, k=6))
    own = E2RankRetriever(vectorstore=store, explain=explain)
    over = E2RankRetriever(base_retriever=given, reranker=other, explain=explain)
    core = SearchPipeline(bert, store.store, ListwiseReranker(bert))
    ranking = core.search(ASKED, explain=True)
    for retriever, changes in ((own, {}), (over, {"score_before": None})):
        found = asyncio.run(retriever.ainvoke(ASKED)) if asynchronous else retriever.invoke(ASKED)
        if explain:
            assert [plain(document) for document in found] == expected(ranking, **changes)
        else:
            assert all("explanation" not in document.metadata for document in found)
        retriever.close()
    store.close()
    embeddings.close()
