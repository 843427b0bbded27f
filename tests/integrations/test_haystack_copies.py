"""Copies, pickles and changed arguments of the Haystack components, alone and in a pipeline."""

from __future__ import annotations

import copy
import gc
import pickle
import shutil

import pytest
from haystack import Pipeline
from haystack.document_stores.types import FilterPolicy
from haystack.tools import ComponentTool
from haystack.utils import Secret
from haystack_integrations.components.embedders.e2rank import (
    E2RankDocumentEmbedder,
    E2RankTextEmbedder,
)
from haystack_integrations.components.rankers.e2rank import E2RankRanker
from haystack_integrations.components.retrievers.e2rank import E2RankRetriever
from haystack_integrations.document_stores.qdrant import QdrantDocumentStore

from e2rank_rag.models.runtime import loaded_models
from e2rank_rag.store import QdrantStore
from tests.integrations.haystack_kit import (
    QUERY,
    TEXTS,
    Encoded,
    alike,
    documents,
    encoder_of,
    folder_store,
    ids,
)

COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda given: pickle.loads(pickle.dumps(given)),
}
INPUTS = {
    "text_embedder": {"text": QUERY},
    "document_embedder": {"documents": documents()},
    "ranker": {"query": QUERY, "documents": documents()},
    "retriever": {"query": QUERY},
}


@pytest.fixture
def own_model(tiny_bert, tmp_path):
    """A copy of the folder: a model that no other test has in memory."""
    return str(shutil.copytree(tiny_bert, tmp_path / "bert"))


@pytest.fixture(params=list(COPIES))
def copied(request):
    return COPIES[request.param]


@pytest.fixture
def store(embedded, tmp_path):
    store = folder_store(tmp_path, recreate_index=True)
    store.write_documents(embedded)
    yield store
    store.close()


@pytest.fixture
def components(tiny_bert, store):
    made = {
        "text_embedder": E2RankTextEmbedder(model=tiny_bert, prefix="so: "),
        "document_embedder": E2RankDocumentEmbedder(model=tiny_bert, progress_bar=False),
        "ranker": E2RankRanker(model=tiny_bert, document_store=store, top_k=4),
        "retriever": E2RankRetriever(store, model=tiny_bert, top_k=3),
    }
    yield made
    for each in made.values():
        each.close()


@pytest.mark.parametrize("used", [False, True], ids=["before use", "after use"])
@pytest.mark.parametrize("name", list(INPUTS))
def test_components_can_be_copied_and_pickled_before_and_after_use_as_configuration(
    name, used, copied, components, store
):
    component, given = components[name], INPUTS[name]
    if used:
        component.run(**given)
    other = copied(component)
    assert other is not component
    assert other.to_dict() == component.to_dict()
    expected = component.run(**given)
    component.close()
    store.close()  # a pickle opens the folder anew, which only one can at a time
    assert alike(other.run(**given), expected)
    other.close()
    pipeline = Pipeline()
    pipeline.add_component("it", other)
    assert pipeline.get_component("it") is other


@pytest.mark.parametrize("how", ["copy", "deepcopy"])
@pytest.mark.parametrize("name", ["ranker", "retriever"])
def test_a_copy_shares_the_document_store(name, how, components, store):
    component, given = components[name], INPUTS[name]
    expected = component.run(**given)
    other = COPIES[how](component)
    assert other.document_store is store
    assert alike(other.run(**given), expected)
    assert alike(component.run(**given), expected)
    other.close()


@pytest.mark.parametrize("used", [False, True], ids=["before use", "after use"])
@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_a_pipeline_is_copied_with_its_connections(how, used, components, store):
    pipeline = Pipeline()
    pipeline.add_component("retriever", components["retriever"])
    pipeline.add_component("ranker", components["ranker"])
    pipeline.connect("retriever", "ranker")
    given = {"retriever": {"query": QUERY}, "ranker": {"query": QUERY}}
    if used:
        pipeline.run(given)
    other = COPIES[how](pipeline)
    expected = pipeline.run(given)
    store.close()
    assert other.dumps() == pipeline.dumps()
    assert alike(other.run(given), expected)
    alone = copy.deepcopy(other.get_component("ranker"))
    Pipeline().add_component("ranker", alone)
    for name in ("retriever", "ranker"):
        assert other.get_component(name) is not components[name]
        other.get_component(name).close()


def test_a_tool_is_copied(components, store):
    tool = ComponentTool(components["retriever"], name="search", description="in the notes")
    expected = tool.invoke(query=QUERY)
    assert ids(copy.deepcopy(tool).invoke(query=QUERY)) == ids(expected)
    again = ComponentTool.from_dict(tool.to_dict())
    components["retriever"].close()
    store.close()
    assert ids(again.invoke(query=QUERY)) == ids(expected)
    again._component.close()


def test_a_copy_frees_its_own_model_only(own_model):
    gc.collect()
    before = loaded_models()
    embedder = E2RankTextEmbedder(model=own_model)
    embedder.warm_up()
    other = copy.copy(embedder)
    other.warm_up()
    embedder.close()
    assert loaded_models() == before + 1
    other.close()
    assert loaded_models() == before


@pytest.mark.parametrize(
    "store",
    [
        QdrantDocumentStore(":memory:"),
        QdrantDocumentStore(client_kwargs={"location": ":memory:"}),
        QdrantStore({"location": ":memory:"}, "docs"),
    ],
    ids=["by name", "by client_kwargs", "ours"],
)
def test_documents_in_memory_are_not_lost_in_a_pickle(store):
    for component in (E2RankRetriever(store), E2RankRanker(document_store=store)):
        with pytest.raises(TypeError, match=r"in memory cannot be pickled"):
            pickle.dumps(component)
        assert copy.deepcopy(component).document_store is store


def test_a_pickle_holds_no_key():
    store = QdrantDocumentStore(url="https://db", api_key=Secret.from_token("hidden"))
    for component in (E2RankRetriever(store), E2RankRanker(document_store=store)):
        with pytest.raises(ValueError, match="token-based"):
            pickle.dumps(component)


# A changed argument is used


def test_a_document_store_that_is_assigned_is_searched(components, embedded, tmp_path):
    retriever = components["retriever"]
    assert len(ids(retriever.run(QUERY))) == 3
    other = folder_store(tmp_path / "other", recreate_index=True)
    other.write_documents(embedded[5:6])
    retriever.document_store = other
    assert ids(retriever.run(QUERY)) == ["d5"]
    retriever.close()
    with pytest.raises(ValueError, match="must be a QdrantDocumentStore"):
        retriever.document_store = "a name"
    assert retriever.document_store is other
    other.close()


def test_an_argument_that_is_assigned_is_checked_as_at_construction(components):
    retriever = components["retriever"]
    with pytest.raises(ValueError, match=r"top_k .* 0"):
        retriever.top_k = 0
    assert retriever.top_k == 3
    with pytest.raises(ValueError, match=r"query_weight .* 2"):
        components["ranker"].query_weight = 2
    retriever.filter_policy = "merge"
    assert retriever.filter_policy is FilterPolicy.MERGE


def test_arguments_that_fit_together_are_assigned_one_after_the_other(components, own_model):
    retriever = components["retriever"]
    retriever.top_k, expected = 200, retriever.run(QUERY, top_k=200)
    assert ids(retriever.run(QUERY)) == ids(expected)
    retriever.retrieve_k = 300
    assert ids(retriever.run(QUERY)) == ids(expected)
    retriever.system = "e2rank"
    with pytest.raises(ValueError, match="system='e2rank'"):
        retriever.run(QUERY)
    retriever.reranker = own_model
    assert ids(retriever.run(QUERY)) == ids(expected)


@pytest.mark.parametrize("name", list(INPUTS))
def test_a_model_that_is_assigned_is_opened(name, components, own_model):
    component, given = components[name], INPUTS[name]
    component.run(**given)
    component.model = own_model
    assert encoder_of(component).name == own_model
    assert component.to_dict()["init_parameters"]["model"] == own_model


def test_other_arguments_that_are_assigned_are_used(components, monkeypatch):
    encoded = Encoded(monkeypatch)
    ranker = components["ranker"]
    ranker.document_store = None
    ranker.meta_fields_to_embed = ["number"]
    ranker.document_prefix = "p: "
    ranker.top_k = 2
    answer = ranker.run(QUERY, documents())
    assert encoded.documents[:1] == [f"p: 0\n{TEXTS[0]}"]
    assert len(ids(answer)) == 2
    ranker.prompt_depth = 1
    assert ranker.run(QUERY, documents())["meta"]["prompt_documents"] == 1
