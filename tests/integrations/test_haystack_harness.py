"""What must hold for every Haystack component alike."""

from __future__ import annotations

import asyncio
import copy
import functools
import os
import shutil
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from haystack import Pipeline
from haystack.utils import ComponentDevice
from haystack_integrations.components.embedders.e2rank import (
    E2RankDocumentEmbedder,
    E2RankTextEmbedder,
)
from haystack_integrations.components.rankers.e2rank import E2RankRanker
from haystack_integrations.components.retrievers.e2rank import E2RankRetriever
from haystack_integrations.document_stores.qdrant import QdrantDocumentStore

from e2rank_rag.errors import StoreError
from e2rank_rag.models.encoder import Encoder
from e2rank_rag.models.runtime import loaded_models
from tests.integrations.haystack_kit import (
    QUERY,
    TEXTS,
    alike,
    documents,
    encoder_of,
    ids,
    memory_store,
)

ROOT = Path(__file__).parents[2]
SOURCES = [ROOT, ROOT / "integrations" / "haystack", *os.environ.get("PYTHONPATH", "").split(":")]
BARE = {"PYTHONPATH": ":".join(map(str, SOURCES)), "HAYSTACK_TELEMETRY_ENABLED": "false"}


@dataclass
class Case:
    """A component, how it is made, and inputs of several lengths for its `run`."""

    kind: type
    options: dict[str, Any]
    inputs: list[dict[str, Any]]
    made: list[Any] = field(default_factory=list)

    def make(self, **options):
        self.made.append(self.kind(**{**self.options, **options}))
        return self.made[-1]


@pytest.fixture(scope="module")
def own_bert(tiny_bert, tmp_path_factory):
    """A copy of the folder: a model that no other test has in memory."""
    return shutil.copytree(tiny_bert, tmp_path_factory.mktemp("own") / "bert")


KINDS = ["text_embedder", "document_embedder", "ranker", "ranker_with_store", "retriever"]


@pytest.fixture(scope="module")
def documents_with_vectors(own_bert):
    embedder = E2RankDocumentEmbedder(model=own_bert)
    embedded = embedder.run(documents())["documents"]
    embedder.close()
    return embedded


@pytest.fixture
def cases(own_bert, documents_with_vectors):
    """Of every kind, by name."""
    embedded = copy.deepcopy(documents_with_vectors)
    store = memory_store(32, embedded)
    queries = [QUERY, "ferry", " ".join(["bread and salt"] * 20), "wind " * 200]
    plain = [documents(TEXTS[:3]), documents([f"{t} " * (4 * n + 1) for n, t in enumerate(TEXTS)])]
    some = [{"query": query, "documents": given} for query in queries for given in plain]
    with_vectors = [{"query": query, "documents": embedded} for query in queries]
    cases = {
        "text_embedder": Case(E2RankTextEmbedder, {}, [{"text": query} for query in queries]),
        "document_embedder": Case(
            E2RankDocumentEmbedder, {"progress_bar": False}, [{"documents": d} for d in plain]
        ),
        "ranker": Case(E2RankRanker, {}, [*some, *with_vectors]),
        "ranker_with_store": Case(
            E2RankRanker,
            {"document_store": store},
            [{"query": query, "documents": documents()} for query in queries],
        ),
        "retriever": Case(
            E2RankRetriever,
            {"document_store": store, "top_k": 5},
            [{"query": query} for query in queries],
        ),
    }
    for each in cases.values():
        each.options["model"] = str(own_bert)
    yield cases
    for each in cases.values():
        for component in each.made:
            component.close()
    store.close()


@pytest.fixture(params=KINDS)
def case(request, cases):
    return cases[request.param]


def in_pipeline(component):
    pipeline = Pipeline()
    pipeline.add_component("it", component)
    return pipeline


def test_a_path_is_a_path(case, own_bert, tmp_path, monkeypatch):
    shutil.copytree(own_bert, tmp_path / "e2rank-minilm")
    monkeypatch.chdir(tmp_path)
    made = case.make(model=Path("e2rank-minilm"))
    stored = yaml.safe_load(yaml.safe_dump(made.to_dict()))
    assert stored["init_parameters"]["model"] == "./e2rank-minilm"
    read = case.kind.from_dict(stored)
    case.made.append(read)
    for component in (made, read):
        assert encoder_of(component).name == str(tmp_path / "e2rank-minilm")


LOAD = """\
import sys
from pathlib import Path
from haystack import Pipeline
for path in sys.argv[1:]:
    text = Path(path).read_text()
    pipeline = Pipeline.loads(text)
    assert "e2rank_rag.models.encoder" not in sys.modules, "nothing is loaded yet"
    component = pipeline.get_component("it")
    print(type(component).__name__, component.device, component.model)
    assert pipeline.dumps() == text
"""


def test_yaml_is_read_without_importing_anything_of_ours(cases, tmp_path):
    paths = []
    for name, each in cases.items():
        paths.append(tmp_path / f"{name}.yaml")
        paths[-1].write_text(in_pipeline(each.make()).dumps())
        assert yaml.safe_load(paths[-1].read_text())["components"]["it"]["init_parameters"]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", LOAD, *map(str, paths)],
        capture_output=True,
        text=True,
        env={**BARE, "HOME": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"{each.kind.__name__} None {each.options['model']}" for each in cases.values()
    ]


def test_made_for_one_device_and_run_on_another(case, monkeypatch):
    assert case.make().to_dict()["init_parameters"]["device"] is None
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    elsewhere = in_pipeline(case.make()).dumps()
    monkeypatch.undo()
    here = Pipeline.loads(elsewhere).get_component("it")
    here.warm_up()
    assert encoder_of(here)._key.device.type in ("cpu", "cuda")
    here.close()
    pinned = case.make(device=ComponentDevice.from_str("cuda:1"))
    text = in_pipeline(pinned).dumps()
    assert Pipeline.loads(text).get_component("it").device == ComponentDevice.from_str("cuda:1")


async def test_async_gives_the_same_answer(case):
    component = case.make()
    for given in case.inputs:
        assert alike(await component.run_async(**given), component.run(**given))
    await component.close_async()


def test_a_pipeline_gives_the_same_answer(case):
    component = case.make()
    expected = component.run(**case.inputs[0])
    assert alike(in_pipeline(component).run({"it": case.inputs[0]})["it"], expected)
    component.close()


async def test_an_async_pipeline_gives_the_same_answer(case):
    component = case.make()
    expected = component.run(**case.inputs[0])
    if hasattr(Pipeline, "run_async"):
        pipeline = in_pipeline(component)
    else:  # haystack 2
        from haystack import AsyncPipeline

        pipeline = AsyncPipeline()
        pipeline.add_component("it", component)
    assert alike((await pipeline.run_async({"it": case.inputs[0]}))["it"], expected)
    component.close()


async def test_inputs_stay_what_they_were(case):
    component = case.make()
    for given in case.inputs:
        before = copy.deepcopy(given)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            component.run(**given)
            await component.run_async(**given)
        assert given == before
    component.close()


async def test_the_event_loop_runs_on_while_it_works(case, monkeypatch):
    """Opening the model and encoding wait for the loop, so a loop that waited for them would stop.

    Each waits in a thread until the loop has seen it."""
    waiting = []

    def needs_the_loop(method):
        @functools.wraps(method)
        def wrapped(*arguments, **options):
            waiting.append(seen := threading.Event())
            assert seen.wait(20), f"the event loop stands still during {method.__name__}"
            return method(*arguments, **options)

        return wrapped

    for name in ("encode_queries", "encode_documents", "encode_listwise", "from_pretrained"):
        monkeypatch.setattr(Encoder, name, needs_the_loop(getattr(Encoder, name)))
    component = case.make()
    seen = 0

    async def work():
        await component.warm_up_async()
        await component.run_async(**case.inputs[0])
        await component.close_async()

    working = asyncio.create_task(work())
    while not working.done():
        while waiting:
            waiting.pop().set()
            seen += 1
        await asyncio.sleep(0.001)
    await working
    assert seen >= 2


def test_eight_threads_give_the_answers_of_one(case):
    component = case.make()
    expected = [component.run(**given) for given in case.inputs]
    jobs = [number % len(case.inputs) for number in range(48)]
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda job: component.run(**case.inputs[job]), jobs))
    for job, answer in zip(jobs, answers, strict=True):
        assert alike(answer, expected[job])
    component.close()


def test_it_runs_again_after_close(case):
    before = loaded_models()
    component = case.make()
    expected = component.run(**case.inputs[0])
    assert loaded_models() == before + 1
    component.close()
    component.close()
    assert loaded_models() == before
    assert alike(component.run(**case.inputs[0]), expected)
    component.close()
    assert loaded_models() == before


def test_two_pipelines_share_one_model(case):
    before = loaded_models()
    pipelines = [in_pipeline(case.make()), in_pipeline(case.make())]
    for pipeline in pipelines:
        pipeline.run({"it": case.inputs[0]})
    assert loaded_models() == before + 1
    for pipeline in pipelines:
        pipeline.get_component("it").close()
    assert loaded_models() == before


def test_nothing_is_loaded_before_it_is_needed(case):
    before = loaded_models()
    component = case.make()
    component.to_dict()
    assert loaded_models() == before
    component.warm_up()
    assert loaded_models() == before + 1
    component.close()


# Together


def test_components_of_one_model_share_it_in_a_pipeline(own_bert):
    before = loaded_models()
    store = memory_store(32)
    indexing = Pipeline()
    from haystack.components.writers import DocumentWriter

    indexing.add_component("embedder", E2RankDocumentEmbedder(model=own_bert))
    indexing.add_component("writer", DocumentWriter(store))
    indexing.connect("embedder.documents", "writer.documents")
    assert indexing.run({"embedder": {"documents": documents()}})["writer"] == {
        "documents_written": 12
    }
    search = Pipeline()
    search.add_component("retriever", E2RankRetriever(store, model=own_bert, top_k=6))
    search.add_component("ranker", E2RankRanker(model=own_bert, top_k=3, document_store=store))
    search.connect("retriever.documents", "ranker.documents")
    found = search.run({"retriever": {"query": QUERY}, "ranker": {"query": QUERY}})["ranker"]
    assert len(found["documents"]) == 3
    assert loaded_models() == before + 1
    for pipeline, names in ((indexing, ["embedder"]), (search, ["retriever", "ranker"])):
        for name in names:
            pipeline.get_component(name).close()
    assert loaded_models() == before


def test_a_ranker_reranks_what_bm25_and_a_joiner_bring(own_bert):
    from haystack.components.joiners import DocumentJoiner
    from haystack.components.retrievers.in_memory import InMemoryBM25Retriever
    from haystack.document_stores.in_memory import InMemoryDocumentStore

    words = InMemoryDocumentStore()
    words.write_documents(documents())
    embedder = E2RankDocumentEmbedder(model=own_bert)
    store = memory_store(32, embedder.run(documents())["documents"])
    embedder.close()
    pipeline = Pipeline()
    pipeline.add_component("bm25", InMemoryBM25Retriever(words, top_k=5))
    pipeline.add_component("dense", E2RankRetriever(store, model=own_bert, top_k=5))
    pipeline.add_component("join", DocumentJoiner())
    pipeline.add_component("ranker", E2RankRanker(model=own_bert, document_store=store))
    pipeline.connect("bm25", "join")
    pipeline.connect("dense", "join")
    pipeline.connect("join", "ranker")
    answer = pipeline.run({name: {"query": QUERY} for name in ("bm25", "dense", "ranker")})
    found = answer["ranker"]
    assert len(set(ids(found))) == len(ids(found)) >= 5
    assert found["meta"]["encoded"] == 0
    for name in ("dense", "ranker"):
        pipeline.get_component(name).close()


@pytest.mark.filterwarnings("ignore:.*experimental component")
def test_the_retriever_serves_haystacks_multi_retriever(own_bert):
    from haystack.components.retrievers import MultiRetriever

    embedder = E2RankDocumentEmbedder(model=own_bert)
    store = memory_store(32, embedder.run(documents())["documents"])
    fused = E2RankRetriever(store, model=own_bert)
    several = MultiRetriever(retrievers={"fused": fused}, top_k=3)
    assert ids(several.run(query=QUERY)) == ids(fused.run(query=QUERY, top_k=3))
    for component in (embedder, fused):
        component.close()


# Without the extras


def importing(module, *missing):
    """Importing a module where others are not installed."""
    code = f"import sys\nfor name in {missing!r}: sys.modules[name] = None\nimport {module}\n"
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=BARE,
    )


@pytest.mark.parametrize("part", ["embedders", "rankers", "retrievers"])
def test_without_haystack_the_extra_is_named(part):
    done = importing(f"haystack_integrations.components.{part}.e2rank", "haystack")
    assert done.returncode == 1
    assert "pip install 'e2rank-rag[haystack]'" in done.stderr.splitlines()[-1]


def test_without_qdrant_haystack_only_its_stores_are_missing(monkeypatch):
    module = "haystack_integrations.document_stores.qdrant"
    store = QdrantDocumentStore(":memory:")
    for name in (module, f"{module}.filters"):
        monkeypatch.setitem(sys.modules, name, None)
    E2RankRanker()
    retriever = E2RankRetriever({"location": ":memory:", "collection": "docs"})
    with pytest.raises(ImportError, match=r"e2rank-rag\[haystack\]"):
        E2RankRetriever(store)
    with pytest.raises(StoreError, match="'docs' is not there"):
        retriever.run(query=QUERY, filters={"field": "id", "operator": "==", "value": "d0"})


def test_the_namespace_belongs_to_everyone():
    home = ROOT / "integrations" / "haystack" / "haystack_integrations"
    shared = (home / "common", home / "components", *(home / "components").glob("*"))
    for folder in (home, *shared):
        assert not (folder / "__init__.py").exists()
