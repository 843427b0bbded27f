"""What the components write into YAML comes back as it was, or is refused; secrets never get in."""

from __future__ import annotations

import datetime
import inspect
import os
import pickle
from pathlib import Path

import pytest
import yaml
from haystack import Pipeline, component
from haystack.utils import Secret
from haystack_integrations.common.e2rank.component import MODEL_ARGUMENTS
from haystack_integrations.common.e2rank.documents import DocumentText
from haystack_integrations.common.e2rank.stores import reader_of
from haystack_integrations.components.embedders.e2rank import (
    E2RankDocumentEmbedder,
    E2RankTextEmbedder,
)
from haystack_integrations.components.rankers.e2rank import E2RankRanker
from haystack_integrations.components.retrievers.e2rank import E2RankRetriever
from haystack_integrations.document_stores.qdrant import QdrantDocumentStore
from hypothesis import given, settings
from hypothesis import strategies as st
from qdrant_client import AsyncQdrantClient, QdrantClient, models

from e2rank_rag.models.cross_encoder import CrossEncoder
from e2rank_rag.models.encoder import Encoder
from e2rank_rag.models.resrank import ResRank
from e2rank_rag.prompts import ChatListwise, Prompts, Task
from e2rank_rag.rerankers.loading import option_names
from e2rank_rag.store import LANGCHAIN_LAYOUT, Layout, QdrantStore
from tests.integrations.haystack_kit import QUERY, TEXTS, documents, ids

SECRET = "hunter2"

numbers = st.integers(1, 65535)
words = st.text("abcxyz-_/.", min_size=1, max_size=12)
plain = st.none() | st.booleans() | numbers | words
# What a QdrantClient takes, with what its users may give; of some of it only a refusal is right.
OPTIONS = {
    "port": st.none() | numbers,
    "grpc_port": numbers,
    "prefer_grpc": st.booleans(),
    "https": st.none() | st.booleans(),
    "prefix": st.none() | words | st.just(f"v1?api_key={SECRET}"),
    "timeout": st.none() | numbers,
    "force_disable_check_same_thread": st.booleans(),
    "grpc_options": st.none() | st.dictionaries(words, plain, max_size=2),
    "check_compatibility": st.booleans(),
    "pool_size": st.none() | numbers,
    "local_inference_batch_size": st.none() | numbers,
    "api_key": st.none() | st.just(SECRET),
    "auth_token_provider": st.none() | st.just(lambda: SECRET),
    "headers": st.none() | st.just({"Authorization": SECRET}),
    "metadata": st.just({"api-key": SECRET}),
    "proxy": st.just(f"http://me:{SECRET}@proxy"),
    "auth": st.just(("me", SECRET)),
    "verify": st.booleans(),
}
places = st.one_of(
    st.just({"location": ":memory:"}),
    st.builds(
        lambda kind, host: {kind: host},
        st.sampled_from(["url", "location"]),
        st.sampled_from(
            ["http://db", "https://db:443/v1", f"https://me:{SECRET}@db", f"http://db?k={SECRET}"]
        ),
    ),
    st.builds(lambda host: {"host": host}, st.sampled_from(["db", f"me:{SECRET}@db"])),
    st.builds(lambda path: {"path": path}, st.sampled_from(["index", Path("index"), "/tmp/a@b?c"])),
)
clients = st.builds(
    lambda place, options: {**place, **options},
    places,
    st.lists(st.sampled_from(sorted(OPTIONS)), max_size=3, unique=True).flatmap(
        lambda names: st.fixed_dictionaries({name: OPTIONS[name] for name in names})
    ),
)


def round_trip(component):
    """The component after YAML, and the YAML."""
    text = yaml.safe_dump(component.to_dict())
    return type(component).from_dict(yaml.safe_load(text)), text


def normal(options):
    """A Path and its string are one place."""
    return {n: os.path.normpath(v) if n == "path" and v else v for n, v in options.items()}


def effective(options):
    """All arguments of a client that is made with these."""
    parameters = inspect.signature(QdrantClient.__init__).parameters.values()
    return normal(
        {**{p.name: p.default for p in parameters if p.default is not p.empty}, **options}
    )


@settings(max_examples=50, deadline=None)
@given(clients)
def test_serialisation_keeps_every_setting_of_a_client_or_refuses_and_never_a_secret(options):
    store = QdrantStore(options, "news", layout=LANGCHAIN_LAYOUT, vector_name="text")
    for made in (E2RankRetriever(store), E2RankRanker(document_store=store)):
        text, refusal = "", ""
        try:
            again, text = round_trip(made)
        except ValueError as refused:
            refusal = str(refused)
        assert SECRET not in text + refusal
        if refusal:
            assert any(repr(name) in refusal for name in options)
            continue
        written = again.document_store
        assert effective(written["client"]) == effective(options)
        if "path" not in options:
            opened = reader_of(written, DocumentText()).open()
            assert effective(opened.settings) == effective(options)
            assert (opened.collection, opened.vector_name) == ("news", "text")
            assert Layout(**written["layout"]) == LANGCHAIN_LAYOUT


def test_other_settings_of_a_store_survive():
    options = {"shard_number": 2, "hnsw_config": {"m": 8}}
    store = QdrantStore({"location": ":memory:"}, "docs", collection_options=options)
    again, _ = round_trip(E2RankRetriever(store))
    assert reader_of(again.document_store, DocumentText()).open().collection_options == options
    odd = QdrantStore({"location": ":memory:"}, "docs", collection_options={"x": object()})
    with pytest.raises(ValueError, match=r"document_store\['collection_options'\]\['x'\]"):
        E2RankRetriever(odd).to_dict()


def test_the_settings_of_an_open_client_survive():
    client = QdrantClient(
        url="http://db", port=7000, prefer_grpc=True, grpc_port=7001, check_compatibility=False
    )
    again, _ = round_trip(E2RankRetriever(QdrantStore(client, "news")))
    assert reader_of(again.document_store, DocumentText()).open().settings == {
        "url": "http://db",
        "port": 7000,
        "prefer_grpc": True,
        "grpc_port": 7001,
        "check_compatibility": False,
    }


@pytest.mark.parametrize(
    "options",
    [
        {"url": f"https://me:{SECRET}@host"},
        {"location": f"https://me:{SECRET}@host"},
        {"host": f"me:{SECRET}@host"},
        {"url": f"https://host?api-key={SECRET}"},
        {"url": "https://host", "metadata": {"api-key": SECRET}},
        {"url": "https://host", "client_kwargs": {"headers": {"Authorization": SECRET}}},
        {"url": "https://host", "client_kwargs": {"auth_token_provider": lambda: SECRET}},
        {"client_kwargs": {"url": f"https://me:{SECRET}@host"}},
        {"url": "https://host", "api_key": SECRET},
        {"url": "https://host", "api_key": Secret.from_token(SECRET)},
    ],
)
def test_a_document_store_of_haystack_with_a_secret_is_refused(options):
    for made in (
        E2RankRetriever(QdrantDocumentStore(**options)),
        E2RankRanker(document_store=QdrantDocumentStore(**options)),
    ):
        with pytest.raises(ValueError, match=r"is a Secret|token-based") as refused:
            made.to_dict()
        assert SECRET not in str(refused.value)


def test_a_document_store_of_haystack_keeps_its_settings(monkeypatch):
    monkeypatch.setenv("KEY", SECRET)
    store = QdrantDocumentStore(
        url="http://db",
        port=7000,
        grpc_port=7001,
        prefer_grpc=True,
        https=True,
        prefix="v1",
        timeout=7,
        index="news",
        embedding_dim=32,
        api_key=Secret.from_env_var("KEY"),
        hnsw_config={"m": 8},
        client_kwargs={"pool_size": 3, "check_compatibility": False},
    )
    again, text = round_trip(E2RankRetriever(store))
    assert SECRET not in text
    assert again.document_store.to_dict() == store.to_dict()


@pytest.mark.parametrize(
    "own", [{"timeout": 9}, {"api_key": SECRET}, {"headers": {"Authorization": SECRET}}]
)
def test_an_async_client_with_other_settings_is_refused_not_dropped(own):
    settings = {"url": "https://db", "check_compatibility": False}
    other = AsyncQdrantClient(**settings, **own)
    store = QdrantStore(QdrantClient(**settings), "docs", async_client=other)
    for write in (E2RankRetriever(store).to_dict, lambda: pickle.dumps(store)):
        with pytest.raises((ValueError, TypeError), match=f"has {next(iter(own))} of its") as said:
            write()
        assert SECRET not in str(said.value)


def test_an_async_client_with_the_same_settings_is_written_with_the_client():
    settings = {"url": "http://db", "timeout": 9, "check_compatibility": False}
    for client in (QdrantClient(**settings), settings):
        store = QdrantStore(client, "docs", async_client=AsyncQdrantClient(**settings))
        again, _ = round_trip(E2RankRetriever(store))
        assert again.document_store["client"] == settings
        assert pickle.loads(pickle.dumps(store)).settings["timeout"] == 9


# Other parameters


conditions = st.one_of(
    st.builds(
        lambda key, value: models.FieldCondition(key=key, match=models.MatchValue(value=value)),
        words,
        st.booleans() | numbers | words,
    ),
    st.builds(
        lambda key, low: models.FieldCondition(key=key, range=models.Range(gte=low)),
        words,
        st.floats(allow_nan=False, allow_infinity=False),
    ),
    st.builds(
        lambda key, low: models.FieldCondition(key=key, range=models.DatetimeRange(lt=low)),
        words,
        st.datetimes(timezones=st.just(datetime.UTC)),
    ),
    st.builds(
        lambda key, any_of: models.FieldCondition(key=key, match=models.MatchAny(any=any_of)),
        words,
        st.lists(words, min_size=1, max_size=3) | st.lists(numbers, min_size=1, max_size=3),
    ),
    st.builds(
        lambda ids: models.HasIdCondition(has_id=ids),
        st.lists(numbers | st.uuids().map(str), min_size=1, max_size=3),
    ),
    st.builds(
        lambda key: models.IsNullCondition(is_null=models.PayloadField(key=key)),
        words,
    ),
)
native_filters = st.recursive(
    st.builds(lambda each: models.Filter(must=[each]), conditions),
    lambda inner: st.builds(
        models.Filter,
        must=st.none() | st.lists(conditions | inner, max_size=2),
        should=st.none() | st.lists(conditions | inner, max_size=2),
        must_not=st.none() | st.lists(conditions | inner, max_size=2),
    ),
    max_leaves=4,
)


@settings(max_examples=40, deadline=None)
@given(native_filters)
def test_native_filters_come_back_as_native_filters(native):
    store = QdrantStore({"location": ":memory:"}, "docs")
    again, _ = round_trip(E2RankRetriever(store, filters=native))
    assert isinstance(again.filters, models.Filter)
    assert again.filters == native


def test_haystacks_filters_come_back_as_they_were():
    filters = {
        "operator": "AND",
        "conditions": [
            {"field": "meta.day", "operator": ">", "value": datetime.datetime(2020, 1, 2)},
            {"field": "meta.must", "operator": "==", "value": {"must": 1}},
        ],
    }
    store = QdrantStore({"location": ":memory:"}, "docs")
    assert round_trip(E2RankRetriever(store, filters=filters))[0].filters == filters


def test_a_component_that_makes_native_filters_can_be_connected(tiny_bert):
    @component
    class Access:
        @component.output_types(filters=models.Filter)
        def run(self) -> dict[str, models.Filter]:
            return {"filters": models.Filter(must=[])}

    @component
    class Words:
        @component.output_types(filters=dict[str, object])
        def run(self) -> dict[str, dict[str, object]]:
            return {"filters": {}}

    for maker in (Access(), Words()):
        pipeline = Pipeline()
        pipeline.add_component("access", maker)
        store = QdrantStore({"location": ":memory:"}, "docs")
        pipeline.add_component("retriever", E2RankRetriever(store))
        pipeline.connect("access.filters", "retriever.filters")


@pytest.mark.parametrize("kind", [E2RankDocumentEmbedder, E2RankTextEmbedder, E2RankRanker])
def test_arguments_of_the_encoder_come_back_as_they_were(kind):
    options = {
        "task": Task(query="Find it", listwise="Rank them:"),
        "prompts": Prompts(query="q: {query}", listwise=ChatListwise(), task=Task(query="x")),
        "max_length": 64,
        "revision": None,
    }
    again, _ = round_trip(kind(encoder_kwargs=options))
    arguments = again._model_arguments(again.encoder_kwargs)
    assert arguments == {"device": None, "dtype": None, **options}


@pytest.mark.parametrize("kind", [E2RankDocumentEmbedder, E2RankTextEmbedder, E2RankRanker])
def test_an_argument_that_yaml_cannot_hold_is_named(kind):
    made = kind(encoder_kwargs={"truncate_dim": 8, "task": {"deep": [Secret.from_token(SECRET)]}})
    with pytest.raises(
        ValueError, match=r"encoder_kwargs\['task'\]\['deep'\]\[0\] is of type Tok"
    ) as refused:
        made.to_dict()
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize(
    "kind", [E2RankDocumentEmbedder, E2RankTextEmbedder, E2RankRanker, E2RankRetriever]
)
@pytest.mark.parametrize("name", ["token", "device", "trust_remote_code"])
def test_an_argument_that_no_model_takes_is_refused_and_never_written(kind, name):
    given = {"document_store": {"location": "x", "collection": "docs"}}
    with pytest.raises(ValueError, match=f"encoder_kwargs has no '{name}', .*'max_length'"):
        kind(encoder_kwargs={name: SECRET}, **(given if kind is E2RankRetriever else {}))


def test_the_arguments_that_models_take_are_those_of_their_from_pretrained():
    taken = set().union(*(option_names(each) for each in (Encoder, ResRank, CrossEncoder)))
    assert set(MODEL_ARGUMENTS) == taken - {"device", "dtype", "encoder"}


def test_a_dict_as_document_store_may_hold_paths_and_a_layout():
    given = {
        "location": Path("index"),
        "collection": "docs",
        "layout": Layout(content_key="body"),
        "timeout": 9,
    }
    again, text = round_trip(E2RankRetriever(given))
    assert "./index" in text
    assert again.document_store == {
        "location": "./index",
        "collection": "docs",
        "layout": {"id_key": "id", "content_key": "body", "metadata_key": "meta"},
        "timeout": 9,
    }


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"collection": "a"}, r"lacks \['location'\]"),
        ({"client": {}}, r"lacks \['collection'\]"),
        ({"client": {}, "location": "x", "collection": "a"}, "not both"),
        ({"client": "http://db", "collection": "a"}, "'client' is str"),
        ({"client": {"api_key": SECRET}, "collection": "a"}, "api_key is a Secret"),
        ({"location": f"http://me:{SECRET}@db", "collection": "a"}, "'location'"),
        ({"location": "http://db", "collection": "a", "headers": {"k": SECRET}}, "no 'headers'"),
        ({"client": {}, "collection": "a", "timeout": 1}, "no 'timeout', .*'layout'"),
    ],
)
def test_a_dict_that_opens_no_store_or_holds_a_secret_is_refused(given, message):
    with pytest.raises(ValueError, match=message) as refused:
        E2RankRetriever(given)
    assert SECRET not in str(refused.value)


def test_components_in_one_yaml_may_name_the_same_folder(tiny_bert, tmp_path):
    embedder = E2RankDocumentEmbedder(model=tiny_bert, progress_bar=False)
    store = QdrantDocumentStore(
        path=str(tmp_path), index="docs", embedding_dim=32, progress_bar=False
    )
    store.write_documents(embedder.run(documents())["documents"])
    embedder.close()
    store.close()
    ours = QdrantStore.open(tmp_path, "docs")
    pipeline = Pipeline()
    pipeline.add_component("retriever", E2RankRetriever(ours, model=tiny_bert))
    pipeline.add_component("other", E2RankRetriever(store, model=tiny_bert))
    pipeline.add_component("ranker", E2RankRanker(model=tiny_bert, document_store=store))
    text = pipeline.dumps()
    ours.close()
    store.close()
    again = Pipeline.loads(text)
    given = {"query": QUERY}
    inputs = {"retriever": given, "other": given, "ranker": {**given, "documents": documents()}}
    try:
        for _ in range(2):
            answer = again.run(inputs)
            assert ids(answer["retriever"]) == ids(answer["other"])
            assert answer["ranker"]["meta"]["fetched"] == len(TEXTS)
            again.get_component("other").close()
    finally:
        for name in inputs:
            again.get_component(name).close()
    QdrantClient(path=str(tmp_path)).close()
