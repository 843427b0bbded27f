"""E2RankTextEmbedder and E2RankDocumentEmbedder, test by test as Haystack's own embedders."""

from __future__ import annotations

import logging
import shutil

import numpy as np
import pytest
import yaml
from haystack import Document
from haystack.utils import ComponentDevice
from haystack_integrations.components.embedders.e2rank import (
    E2RankDocumentEmbedder,
    E2RankTextEmbedder,
)

from e2rank_rag.errors import CheckpointError
from e2rank_rag.models.encoder import Encoder
from e2rank_rag.models.runtime import loaded_models
from e2rank_rag.prompts import Task, resolve_prompts
from tests.integrations.haystack_kit import QUERY, Encoded, alike, documents, encoder_of

HOME = "haystack_integrations.components.embedders.e2rank"
TEXT = {
    "model": "e2rank-minilm",
    "bm25": None,
    "prefix": "",
    "suffix": "",
    "device": None,
    "dtype": None,
    "encoder_kwargs": None,
}
DOCUMENT = {
    **TEXT,
    "meta_fields_to_embed": [],
    "embedding_separator": "\n",
    "progress_bar": True,
}
BOTH = pytest.mark.parametrize(
    ("kind", "type_name", "defaults"),
    [
        (E2RankTextEmbedder, f"{HOME}.text_embedder.E2RankTextEmbedder", TEXT),
        (E2RankDocumentEmbedder, f"{HOME}.document_embedder.E2RankDocumentEmbedder", DOCUMENT),
    ],
    ids=["text", "document"],
)


@pytest.fixture
def encoded(monkeypatch):
    return Encoded(monkeypatch)


@pytest.fixture
def text_embedder(tiny_bert):
    embedder = E2RankTextEmbedder(model=tiny_bert)
    yield embedder
    embedder.close()


@pytest.fixture
def document_embedder(tiny_bert):
    embedder = E2RankDocumentEmbedder(model=tiny_bert)
    yield embedder
    embedder.close()


@BOTH
def test_init_default(kind, type_name, defaults):
    embedder = kind()
    assert {name: getattr(embedder, name) for name in defaults} == defaults


@BOTH
def test_init_with_parameters(kind, type_name, defaults):
    custom = {**defaults, "model": "mine", "prefix": "p", "suffix": "s", "dtype": "float16"}
    custom["device"] = ComponentDevice.from_str("cuda:0")
    embedder = kind(**custom)
    assert {name: getattr(embedder, name) for name in custom} == custom


@BOTH
def test_to_dict(kind, type_name, defaults):
    assert kind().to_dict() == {"type": type_name, "init_parameters": defaults}


@BOTH
def test_to_dict_with_custom_init_parameters(kind, type_name, defaults):
    custom = {
        **defaults,
        "model": "mine",
        "prefix": "prefix",
        "dtype": "bfloat16",
        "encoder_kwargs": {"task": "nq", "revision": "v1"},
    }
    data = kind(**{**custom, "device": ComponentDevice.from_str("cuda:0")}).to_dict()
    custom["device"] = {"type": "single", "device": "cuda:0"}
    assert data == {"type": type_name, "init_parameters": custom}


@BOTH
def test_from_dict(kind, type_name, defaults):
    parameters = {**defaults, "device": {"type": "single", "device": "cpu"}, "suffix": "."}
    embedder = kind.from_dict({"type": type_name, "init_parameters": parameters})
    assert embedder.device == ComponentDevice.from_str("cpu")
    assert embedder.suffix == "."


@BOTH
def test_from_dict_no_default_parameters(kind, type_name, defaults):
    embedder = kind.from_dict({"type": type_name, "init_parameters": {}})
    assert {name: getattr(embedder, name) for name in defaults} == defaults


@BOTH
def test_from_dict_none_device(kind, type_name, defaults):
    embedder = kind.from_dict({"type": type_name, "init_parameters": {"device": None}})
    assert embedder.device is None
    assert embedder.to_dict()["init_parameters"]["device"] is None


@BOTH
def test_warm_up_does_not_reload(kind, type_name, defaults, tiny_bert, monkeypatch):
    opened = []
    open_model = Encoder.from_pretrained

    def counted(*arguments, **options):
        opened.append(arguments)
        return open_model(*arguments, **options)

    monkeypatch.setattr(Encoder, "from_pretrained", counted)
    embedder = kind(model=tiny_bert)
    assert opened == []
    embedder.warm_up()
    embedder.warm_up()
    assert opened == [(str(tiny_bert),)]
    embedder.close()


@BOTH
def test_two_embedders_of_one_model_share_it(kind, type_name, defaults, tiny_bert, tmp_path):
    before = loaded_models()
    folder = shutil.copytree(tiny_bert, tmp_path / "own")
    pair = [kind(model=folder), kind(model=folder, prefix="other ")]
    for embedder in pair:
        embedder.warm_up()
    assert loaded_models() == before + 1
    pair[0].close()
    assert loaded_models() == before + 1
    pair[1].close()
    assert loaded_models() == before


@BOTH
def test_a_model_that_is_nowhere_is_named(kind, type_name, defaults, tmp_path):
    with pytest.raises(CheckpointError, match="there is no model folder"):
        kind(model=tmp_path / "missing", encoder_kwargs={"local_files_only": True}).warm_up()


@BOTH
def test_dtype_and_further_arguments_reach_the_encoder(kind, type_name, defaults, tiny_bert):
    embedder = kind(model=tiny_bert, dtype="bfloat16", encoder_kwargs={"truncate_dim": 8})
    encoder = encoder_of(embedder)
    assert encoder.dim == 8
    assert str(encoder._key.dtype) == "torch.bfloat16"
    embedder.close()


@BOTH
def test_a_task_of_ones_own_survives_yaml(kind, type_name, defaults, tiny_qwen3):
    options = {"pooling": "last", "prompts": resolve_prompts("e2rank"), "task": Task(query="Find!")}
    made = kind(model=tiny_qwen3, encoder_kwargs=options)
    written = yaml.safe_dump(made.to_dict())
    loaded = kind.from_dict(yaml.safe_load(written))
    for embedder in (made, loaded):
        assert encoder_of(embedder).recipe.prompts.task == Task(query="Find!")
        embedder.close()


# Queries


def test_text_run(text_embedder, tiny_bert):
    embedding = text_embedder.run(text=QUERY)["embedding"]
    assert isinstance(embedding, list)
    assert {type(number) for number in embedding} == {float}
    with Encoder.from_pretrained(tiny_bert) as encoder:
        assert alike(embedding, encoder.encode_queries([QUERY])[0].tolist())
    assert np.linalg.norm(embedding) == pytest.approx(1.0, abs=1e-6)


def test_text_run_uses_the_models_query_prompt(tiny_qwen3):
    options = {"pooling": "last", "prompts": "e2rank", "task": "scifact"}
    embedder = E2RankTextEmbedder(model=tiny_qwen3, encoder_kwargs=options)
    with Encoder.from_pretrained(tiny_qwen3, **options) as encoder:
        expected = encoder.encode_queries([QUERY])[0].tolist()
        assert alike(embedder.run(text=QUERY)["embedding"], expected)
        assert not alike(expected, encoder.encode_documents([QUERY])[0].tolist())
    embedder.close()


def test_text_prefix_and_suffix(tiny_bert, encoded):
    embedder = E2RankTextEmbedder(model=tiny_bert, prefix="find ", suffix=" now")
    embedder.run(text="cats")
    assert encoded.queries == ["find cats now"]
    embedder.close()


@pytest.mark.parametrize("wrong", [[1, 2, 3], ["text"], [Document(content="text")], None])
def test_text_run_wrong_input_format(text_embedder, wrong):
    with pytest.raises(TypeError, match="E2RankTextEmbedder expects a string as input"):
        text_embedder.run(text=wrong)


async def test_text_run_async(text_embedder):
    assert alike(await text_embedder.run_async(text=QUERY), text_embedder.run(text=QUERY))
    with pytest.raises(TypeError, match="expects a string"):
        await text_embedder.run_async(text=[QUERY])


# Documents


def test_document_run(document_embedder, tiny_bert):
    given = documents()
    answer = document_embedder.run(documents=given)["documents"]
    with Encoder.from_pretrained(tiny_bert) as encoder:
        expected = encoder.encode_documents([d.content for d in given]).tolist()
    assert alike([d.embedding for d in answer], expected)
    assert {type(number) for d in answer for number in d.embedding} == {float}
    for old, new in zip(given, answer, strict=True):
        assert new is not old
        assert (new.id, new.content, new.meta) == (old.id, old.content, old.meta)
        assert old.embedding is None


@pytest.mark.parametrize("wrong", ["text", [1, 2, 3], Document(content="text"), [None]])
def test_document_run_wrong_input_format(document_embedder, wrong):
    with pytest.raises(
        TypeError, match="E2RankDocumentEmbedder expects a list of Documents as input"
    ):
        document_embedder.run(documents=wrong)


def test_document_run_of_nothing_loads_nothing():
    assert E2RankDocumentEmbedder(model="nowhere").run(documents=[]) == {"documents": []}


def test_document_embed_metadata(tiny_bert, encoded):
    embedder = E2RankDocumentEmbedder(
        model=tiny_bert, meta_fields_to_embed=["title"], embedding_separator=" | "
    )
    embedder.run([Document(content=f"text {i}", meta={"title": f"title {i}"}) for i in range(3)])
    assert encoded.documents == [f"title {i} | text {i}" for i in range(3)]
    embedder.close()


def test_document_embed_metadata_preserves_falsy_values(tiny_bert, encoded):
    embedder = E2RankDocumentEmbedder(
        model=tiny_bert, meta_fields_to_embed=["rating", "sold", "missing", "nothing"]
    )
    meta = {"rating": 0, "sold": False, "nothing": None}
    embedder.run([Document(content="text", meta=meta)])
    assert encoded.documents == ["0\nFalse\ntext"]
    embedder.close()


def test_document_prefix_and_suffix(tiny_bert, encoded):
    embedder = E2RankDocumentEmbedder(
        model=tiny_bert, prefix="my ", suffix=" end", meta_fields_to_embed=["title"]
    )
    embedder.run([Document(content="text", meta={"title": "title"}), Document(id="empty")])
    assert encoded.documents == ["my title\ntext end", "my  end"]
    embedder.close()


@pytest.mark.parametrize(("progress_bar", "progress"), [(True, None), (False, False)])
def test_document_progress_bar(tiny_bert, encoded, progress_bar, progress):
    embedder = E2RankDocumentEmbedder(model=tiny_bert, progress_bar=progress_bar)
    embedder.run(documents())
    assert encoded.progress == [progress]
    embedder.close()


def test_document_run_tells_of_texts_that_were_cut(document_embedder, caplog):
    with caplog.at_level(logging.WARNING):
        document_embedder.run([Document(content="cats " * 500), Document(content="dogs")])
    assert "1 of 2 documents were longer than 128 tokens" in caplog.text


async def test_document_run_async(document_embedder):
    again = await document_embedder.run_async(documents())
    assert alike(again, document_embedder.run(documents()))
    assert await document_embedder.run_async([]) == {"documents": []}
    with pytest.raises(TypeError, match="expects a list of Documents"):
        await document_embedder.run_async("text")
