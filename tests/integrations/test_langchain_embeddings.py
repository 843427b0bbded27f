"""E2RankEmbeddings, and what every component does with its model."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from langchain_e2rank import E2RankEmbeddings, E2RankReranker
from langchain_tests.integration_tests import EmbeddingsIntegrationTests
from langchain_tests.unit_tests import EmbeddingsUnitTests
from pydantic import ValidationError

from e2rank_rag.errors import CheckpointError
from e2rank_rag.models.encoder import Encoder
from e2rank_rag.models.runtime import loaded_models
from e2rank_rag.prompts import Task
from tests.integrations.langchain_parts import QUERY, TEXTS, ticks_during

ROOT = Path(__file__).parents[2]


class TestUnit(EmbeddingsUnitTests):
    @property
    def embeddings_class(self):
        return E2RankEmbeddings

    @property
    def embedding_model_params(self):
        return {"model": "minilm"}


class TestIntegration(EmbeddingsIntegrationTests):
    @property
    def embeddings_class(self):
        return E2RankEmbeddings

    @property
    def embedding_model_params(self):
        return {"model": "minilm"}


@pytest.fixture
def embeddings(tiny_qwen3):
    embeddings = E2RankEmbeddings(model=tiny_qwen3, pooling="last", prompts="e2rank")
    yield embeddings
    embeddings.close()


def test_the_vectors_are_the_encoders(embeddings, qwen3):
    np.testing.assert_allclose(
        embeddings.embed_documents(TEXTS), qwen3.encode_documents(TEXTS), atol=1e-6
    )
    np.testing.assert_allclose(
        embeddings.embed_query(QUERY), qwen3.encode_queries([QUERY])[0], atol=1e-6
    )
    assert embeddings.embed_documents([]) == []


async def test_async_gives_the_same(embeddings):
    np.testing.assert_allclose(
        await embeddings.aembed_documents(TEXTS), embeddings.embed_documents(TEXTS), atol=1e-6
    )
    np.testing.assert_allclose(
        await embeddings.aembed_query(QUERY), embeddings.embed_query(QUERY), atol=1e-6
    )


async def test_the_event_loop_ticks_while_a_model_is_opened_and_encodes(tiny_bert):
    embeddings = E2RankEmbeddings(model=tiny_bert)
    assert await ticks_during(embeddings.aembed_documents(TEXTS * 50)) >= 5
    embeddings.close()


def test_threads_give_the_answers_of_one_thread(embeddings):
    texts = [" ".join(TEXTS[: 1 + number % 8]) for number in range(24)]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(embeddings.embed_query, texts))
    expected = [embeddings.embed_query(text) for text in texts]
    np.testing.assert_allclose(found, expected, atol=1e-5)


async def test_tasks_give_the_answers_of_one_thread(embeddings):
    found = await asyncio.gather(*(embeddings.aembed_query(text) for text in TEXTS))
    np.testing.assert_allclose(found, [embeddings.embed_query(t) for t in TEXTS], atol=1e-5)


def test_components_of_one_model_share_it_and_the_last_one_frees_it(tiny_xlmr):
    before = loaded_models()
    first, second = E2RankEmbeddings(model=tiny_xlmr), E2RankReranker(model=tiny_xlmr)
    assert loaded_models() == before, "opened before it was used"
    vector = first.embed_query(QUERY)
    assert second.encoder.dim == len(vector)
    assert loaded_models() == before + 1
    first.close()
    first.close()
    assert loaded_models() == before + 1
    second.close()
    assert loaded_models() == before
    assert first.embed_query(QUERY) == pytest.approx(vector, abs=1e-6)
    first.close()


def test_the_configuration_makes_the_same_component_again(tiny_qwen3):
    embeddings = E2RankEmbeddings(
        model=str(tiny_qwen3), task=Task(query="find it"), max_length=64, device="cpu"
    )
    again = E2RankEmbeddings(**embeddings.model_dump())
    assert again == embeddings
    assert E2RankEmbeddings.model_validate_json(embeddings.model_dump_json()) == embeddings


def test_parameters_reach_the_model(tiny_qwen3):
    embeddings = E2RankEmbeddings(
        model=tiny_qwen3,
        pooling="last",
        prompts="e2rank",
        max_length=48,
        truncate_dim=8,
        device="cpu",
        dtype="float32",
    )
    assert embeddings.encoder.recipe.document_tokens == 48
    assert len(embeddings.embed_query(QUERY)) == 8
    embeddings.close()


def test_an_unknown_parameter_and_a_missing_model_are_errors(tmp_path):
    with pytest.raises(ValidationError, match="modle"):
        E2RankEmbeddings(modle="minilm")
    with pytest.raises((CheckpointError, OSError)):
        E2RankEmbeddings(model=tmp_path / "nothing").embed_query(QUERY)


def test_a_failed_opening_is_tried_again(tiny_bert, monkeypatch):
    embeddings = E2RankEmbeddings(model=tiny_bert)
    with monkeypatch.context() as patch:
        patch.setattr(
            Encoder, "from_pretrained", lambda **_: (_ for _ in ()).throw(OSError("no disk"))
        )
        with pytest.raises(OSError, match="no disk"):
            embeddings.embed_query(QUERY)
    assert embeddings.embed_query(QUERY)
    embeddings.close()


def run(code):
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'integrations' / 'langchain'}", "PATH": ""},
    )
    return done.stdout + done.stderr


def test_without_langchain_the_import_says_which_extra_to_install():
    said = run("import sys; sys.modules['langchain_core'] = None; import langchain_e2rank")
    assert 'pip install "e2rank-rag[langchain]"' in said


def test_importing_the_components_loads_no_torch():
    assert run("import sys, langchain_e2rank; print('torch' in sys.modules)") == "False\n"


@pytest.mark.parametrize("kind", [E2RankEmbeddings, E2RankReranker])
def test_a_path_is_a_path(tiny_bert, tmp_path, monkeypatch, kind):
    shutil.copytree(tiny_bert, tmp_path / "e2rank-minilm")
    monkeypatch.chdir(tmp_path)
    made = kind(model=Path("e2rank-minilm"))
    read = kind.model_validate(made.model_dump(mode="json"))
    for component in (made, read):
        assert component.encoder.name == str(tmp_path / "e2rank-minilm")
        component.close()
