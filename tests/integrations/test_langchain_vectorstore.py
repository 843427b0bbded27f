"""E2RankVectorStore: LangChain's standard suite, and what the suite does not ask."""

from __future__ import annotations

import asyncio
import threading
import uuid

import numpy as np
import pytest
from langchain_core.documents import Document
from langchain_core.indexing import InMemoryRecordManager, index
from langchain_e2rank import E2RankEmbeddings, E2RankVectorStore
from langchain_qdrant import QdrantVectorStore
from langchain_tests.integration_tests import VectorStoreIntegrationTests
from pydantic import SecretStr
from qdrant_client import QdrantClient

from e2rank_rag.errors import StoredVectorMismatch, StoreError
from e2rank_rag.store import LANGCHAIN_LAYOUT, QdrantStore
from e2rank_rag.words import Bm25
from tests.encoders import CountingEncoder, another_model
from tests.integrations.langchain_parts import (
    IDS,
    KINDS,
    QUERY,
    TEXTS,
    EncoderEmbeddings,
    contents,
    documents,
    ticks_during,
)


class TestStandard(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self):
        store = E2RankVectorStore(self.get_embeddings())
        yield store
        store.close()


class TestStandardFromTexts(VectorStoreIntegrationTests):
    """A store that was made from no texts, in a folder."""

    @pytest.fixture
    def vectorstore(self, tmp_path):
        store = E2RankVectorStore.from_texts([], self.get_embeddings(), location=tmp_path / "q")
        yield store
        store.close()


class TestStandardWithWords(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self):
        store = E2RankVectorStore(self.get_embeddings(), bm25=Bm25())
        yield store
        store.close()


@pytest.fixture(scope="module")
def embeddings(tiny_bert):
    embeddings = E2RankEmbeddings(model=tiny_bert)
    yield embeddings
    embeddings.close()


@pytest.fixture
def store(embeddings):
    store = E2RankVectorStore.from_documents(documents(), embeddings)
    yield store
    store.close()


def ids(found):
    return [document.id for document in found]


def test_documents_come_back_with_id_text_and_metadata(store):
    found = store.similarity_search(TEXTS[2], k=8)
    assert found[0] == Document(id="ferry", page_content=TEXTS[2], metadata={"kind": "traffic"})
    assert sorted(ids(found)) == sorted(IDS)


def test_missing_ids_are_uuids_and_given_ones_stay(embeddings):
    store = E2RankVectorStore(embeddings)
    first, second = store.add_texts(["one", "two"], ids=["a", None])
    assert first == "a"
    assert uuid.UUID(second).version == 4
    store.close()


def test_counts_must_agree(store):
    with pytest.raises(ValueError, match="2 texts came with 1 metadatas"):
        store.add_texts(["a", "b"], [{}])
    with pytest.raises(ValueError, match="2 texts came with 3 ids"):
        store.add_texts(["a", "b"], ids=["1", "2", "3"])


async def test_async_twins_give_the_same(embeddings, store):
    other = await E2RankVectorStore.afrom_documents(documents(), embeddings)
    vector = embeddings.embed_query(QUERY)
    assert other.similarity_search(QUERY) == store.similarity_search(QUERY)
    for name, arguments in {
        "similarity_search": (QUERY,),
        "similarity_search_with_score": (QUERY,),
        "similarity_search_by_vector": (vector,),
        "similarity_search_with_relevance_scores": (QUERY,),
        "max_marginal_relevance_search": (QUERY,),
        "max_marginal_relevance_search_by_vector": (vector,),
        "get_by_ids": (["ferry", "nobody", "cats"],),
        "delete": (["ferry"],),
    }.items():
        expected = getattr(store, name)(*arguments)
        assert await getattr(other, f"a{name}")(*arguments) == expected, name
        assert expected, name
    assert await other.adelete()
    assert await other.asimilarity_search(QUERY) == []
    await other.aclose()


async def test_the_event_loop_ticks_while_writing_and_searching(embeddings):
    store = E2RankVectorStore(embeddings)
    assert await ticks_during(store.aadd_texts(TEXTS * 40)) >= 5
    assert await ticks_during(store.asimilarity_search(QUERY)) >= 1
    found = await asyncio.gather(*(store.asimilarity_search(text, k=1) for text in TEXTS))
    assert [contents(one) for one in found] == [[text] for text in TEXTS]
    store.close()


async def test_a_cancelled_search_leaves_the_queue(embeddings, store, monkeypatch):
    encoder = embeddings.encoder
    asked, encode = [], type(encoder).encode_queries
    monkeypatch.setattr(
        type(encoder),
        "encode_queries",
        lambda encoder, texts, **options: asked.append(texts) or encode(encoder, texts, **options),
    )
    hold = threading.Event()
    blocker = asyncio.create_task(encoder.run_async(hold.wait))
    await asyncio.sleep(0.01)
    for search in (store.asimilarity_search, store.amax_marginal_relevance_search):
        waiting = asyncio.create_task(search(QUERY))
        await asyncio.sleep(0.1)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    hold.set()
    await blocker
    assert asked == []


def test_scores_are_cosines_and_relevance_lies_between_0_and_1(embeddings, store):
    rows = np.array(embeddings.embed_documents(TEXTS)) @ np.array(embeddings.embed_query(QUERY))
    scored = store.similarity_search_with_score(QUERY, k=8)
    assert {d.page_content: s for d, s in scored} == pytest.approx(
        dict(zip(TEXTS, rows.tolist(), strict=True)), abs=1e-5
    )
    assert all(isinstance(score, float) for _, score in scored)
    relevant = store.similarity_search_with_relevance_scores(QUERY, k=8)
    assert [r for _, r in relevant] == pytest.approx([(s + 1) / 2 for _, s in scored])
    (_, best), *_ = store.similarity_search_with_relevance_scores(TEXTS[0])
    assert best <= 1.0


def test_filters_are_plain_or_native(store):
    assert set(ids(store.similarity_search(QUERY, k=8, filter={"kind": "traffic"}))) == {
        "ferry",
        "bridge",
    }
    retriever = store.as_retriever(search_kwargs={"k": 8, "filter": {"kind": ["ice", "food"]}})
    assert set(ids(retriever.invoke(QUERY))) == {"ice", "bread"}


def test_an_unknown_search_argument_is_an_error(store):
    with pytest.raises(TypeError, match="with_vectors"):
        store.similarity_search(QUERY, with_vectors=True)


def test_marginal_relevance_prefers_the_unlike(embeddings):
    store = E2RankVectorStore.from_texts([TEXTS[0], TEXTS[0] + " ", TEXTS[1]], embeddings)
    found = contents(store.max_marginal_relevance_search(TEXTS[0], k=2, lambda_mult=0.1))
    assert found[0].strip() == TEXTS[0]
    assert found[1] == TEXTS[1]
    for kind, kwargs in {"mmr": {}, "similarity_score_threshold": {"score_threshold": 0.1}}.items():
        assert store.as_retriever(search_type=kind, search_kwargs=kwargs).invoke(TEXTS[0])
    store.close()


def test_delete_without_ids_removes_all(store):
    assert store.delete()
    assert store.get_by_ids(IDS) == []


def test_nothing_is_found_before_anything_was_written(embeddings, caplog):
    store = E2RankVectorStore(embeddings, collection_name="nothing")
    assert store.similarity_search(QUERY) == []
    assert store.similarity_search_by_vector(embeddings.embed_query(QUERY)) == []
    assert store.get_by_ids(["a"]) == []
    assert store.delete(["a"])
    assert "'nothing'" in caplog.text
    store.close()


def test_langchains_indexing_works_on_it(store):
    manager = InMemoryRecordManager("things")
    manager.create_schema()
    report = index(
        documents()[:3], manager, store, cleanup="full", source_id_key="kind", key_encoder="sha256"
    )
    assert (report["num_added"], report["num_deleted"]) == (3, 0)
    report = index(
        documents()[1:3], manager, store, cleanup="full", source_id_key="kind", key_encoder="sha256"
    )
    assert (report["num_skipped"], report["num_deleted"]) == (2, 1)


def test_batches_write_the_same(embeddings, store):
    other = E2RankVectorStore(embeddings)
    other.add_documents(documents(), batch_size=3)
    assert other.similarity_search(QUERY, k=8) == store.similarity_search(QUERY, k=8)
    other.close()


def test_the_model_is_recorded_and_another_one_is_refused(embeddings, tiny_xlmr, store):
    assert store.store.fingerprint == embeddings.encoder.fingerprint
    other = E2RankEmbeddings(model=tiny_xlmr)
    theirs = E2RankVectorStore(other, client=store.store.client)
    with pytest.raises(StoredVectorMismatch):
        theirs.add_texts(["more"])
    with pytest.raises(StoredVectorMismatch):
        theirs.similarity_search(QUERY)
    other.close()


def test_other_embeddings_are_not_recorded(bert):
    store = E2RankVectorStore.from_texts(TEXTS, EncoderEmbeddings(bert))
    assert store.store.fingerprint is None
    assert contents(store.similarity_search(TEXTS[3], k=1)) == [TEXTS[3]]
    store.close()


def test_nothing_is_written_beside_the_vectors_of_an_unknown_model(bert, embeddings):
    stranger = EncoderEmbeddings(CountingEncoder(bert, turn=another_model(bert.dim)))
    store = E2RankVectorStore.from_texts(TEXTS, stranger)
    for policy in ("check", "trust"):
        ours = E2RankVectorStore(embeddings, client=store.store.client, stored_vectors=policy)
        if policy == "check":
            with pytest.raises(StoredVectorMismatch):
                ours.add_texts(["more"])
        else:
            ours.add_texts(["more"])
    store.close()


def test_stock_langchain_and_this_store_read_each_other(bert, embeddings):
    client = QdrantClient(":memory:")
    QdrantStore(client, "docs", layout=LANGCHAIN_LAYOUT).prepare(bert.dim)
    stock = QdrantVectorStore(client, "docs", EncoderEmbeddings(bert))
    written = stock.add_documents(
        [Document(page_content=d.page_content, metadata=d.metadata) for d in documents()]
    )
    ours = E2RankVectorStore(
        embeddings, client=client, collection_name="docs", layout=LANGCHAIN_LAYOUT
    )
    (found,) = ours.similarity_search(TEXTS[5], k=1)
    assert found == Document(
        id=str(uuid.UUID(written[5])), page_content=TEXTS[5], metadata={"kind": KINDS[5]}
    )
    (added,) = ours.add_texts(["a new one"])
    assert stock.get_by_ids([added])[0].page_content == "a new one"
    client.close()


def test_a_folder_keeps_its_documents(embeddings, tmp_path):
    store = E2RankVectorStore.from_documents(
        documents(), embeddings, location=tmp_path, collection_name="kept"
    )
    store.close()
    again = E2RankVectorStore(embeddings, location=tmp_path, collection_name="kept")
    assert ids(again.similarity_search(TEXTS[4], k=1)) == ["bread"]
    again.close()
    with pytest.raises(StoreError, match="closed"):
        again.similarity_search(QUERY)


def test_keys_are_for_servers_and_are_not_shown(embeddings):
    store = E2RankVectorStore(
        embeddings, location="https://localhost:1", api_key=SecretStr("s3cret"), timeout=1
    )
    assert "s3cret" not in repr(vars(store))
    assert "s3cret" not in store.store.name
    assert store.store.client.init_options["api_key"] == "s3cret"
    store.close()
    with pytest.raises(ValueError, match="not both"):
        E2RankVectorStore(embeddings, client=store.store.client, location="https://localhost:1")
    with pytest.raises(TypeError, match="grcp"):
        E2RankVectorStore(embeddings, grcp=True)


@pytest.mark.parametrize("count", [200, 300])
async def test_an_id_given_twice_is_refused_before_anything_is_written(embeddings, count):
    store = E2RankVectorStore(embeddings)
    texts = [f"text {number}" for number in range(count)]
    ids = [f"id {number}" for number in range(count - 1)] + ["id 0"]
    with pytest.raises(ValueError, match="'id 0'"):
        store.add_texts(texts, ids=ids)
    with pytest.raises(ValueError, match="'id 0'"):
        await store.aadd_texts(texts, ids=ids)
    with pytest.raises(ValueError, match="'id 0'"):
        E2RankVectorStore.from_texts(texts, embeddings, ids=ids, client=store.store.client)
    metadatas = [{} for _ in texts[:-1]] + [{"wrong": object()}]
    with pytest.raises(ValueError, match="wrong"):
        store.add_texts(texts, metadatas)
    with pytest.raises(ValueError, match="batch_size must be > 0, got -1"):
        store.add_texts(texts, batch_size=-1)
    assert not store.collection.exists
    store.close()
