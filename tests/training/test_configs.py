"""The configurations that ship train, as they are but for the model, the data and the length."""

from __future__ import annotations

import json

import pytest
import yaml

from e2rank_rag.models.encoder import Encoder
from e2rank_rag.rerankers import load_reranker
from e2rank_rag.training import train
from e2rank_rag.training.config import ADAPTER_CONFIG, read_config
from e2rank_rag.types import Document, Hit
from tests.training.conftest import TOPICS

pytestmark = pytest.mark.slow

MODELS = {
    "adapter": "tiny_bert",
    "e2rank-minilm": "tiny_bert",
    "rankt5": "tiny_t5",
    "rankt5-minilm": "tiny_bert",
    "resrank-minilm": "tiny_bert",
    "resrank-qwen3": "qwen3_encoder",
    "stage1-qwen3": "tiny_qwen3",
    "stage2-adapter-qwen3": "qwen3_encoder",
    "stage2-joint-qwen3": "qwen3_encoder",
}
"""By configuration, a tiny model of the family that it is for."""


@pytest.fixture(scope="module")
def qwen3_encoder(tiny_qwen3, tmp_path_factory):
    """The tiny Qwen3 as stage 1 writes it, with the positions of the real one."""
    with Encoder.from_pretrained(tiny_qwen3, pooling="last", prompts="e2rank") as encoder:
        folder = encoder.save(tmp_path_factory.mktemp("qwen3-encoder"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 32768}))
    return folder


def test_every_configuration_that_ships_is_tried():
    assert {path.stem for path in ADAPTER_CONFIG.parent.glob("*.yaml")} == set(MODELS)


# The new name is not known to the first releases of transformers 5.
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("name", MODELS)
def test_a_configuration_that_ships_trains(request, lists, tmp_path, name):
    model = request.getfixturevalue(MODELS[name])
    path = ADAPTER_CONFIG.parent / f"{name}.yaml"
    given = {"init_from": str(model), "output": tmp_path / name, "data": [{"path": lists}]}
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    changes = ["trainer.max_steps=2", "trainer.per_device_train_batch_size=2"]
    changes += ["trainer.gradient_accumulation_steps=1", "trainer.use_cpu=yes"]
    changes += ["trainer.logging_steps=1", "trainer.disable_tqdm=yes"]
    if "reranker_from" in settings:
        given["reranker_from"] = str(request.getfixturevalue("tiny_qwen3"))
    if "document_tokens" in settings.get("prompt", {}):
        changes.append("prompt.document_tokens=64")
    if "max_tokens" in settings:
        changes.append("max_tokens=64")
    folder = train(read_config(path, changes, given))
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    losses = [line["loss"] for line in map(json.loads, lines) if "loss" in line]
    assert len(losses) == 2
    hits = [Hit(Document(topic, topic), 0.0) for topic in TOPICS]
    with load_reranker(folder) as reranker:
        assert len(reranker.rerank("about cats", hits)) == len(TOPICS)
