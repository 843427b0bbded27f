"""A folder opens as the system that it says it is, whatever it is called."""

from __future__ import annotations

import json
import shutil

import pytest
from sentence_transformers import CrossEncoder as StockCrossEncoder

from e2rank_rag.errors import CheckpointError
from e2rank_rag.models.encoder import Encoder
from e2rank_rag.models.folders import system_of
from e2rank_rag.models.runtime import loaded_models
from e2rank_rag.rerankers import (
    CrossEncoderReranker,
    ListwiseReranker,
    ResidualReranker,
    load_reranker,
)
from tests.cross_encoders import write_bert_cross_encoder

KINDS = {
    "tiny_bert": ("e2rank", ListwiseReranker),
    "tiny_resrank": ("resrank", ResidualReranker),
    "tiny_rankt5": ("rankt5", CrossEncoderReranker),
}


@pytest.mark.parametrize("name", KINDS)
def test_the_file_in_the_folder_decides_and_its_name_does_not(request, tmp_path, name):
    system, kind = KINDS[name]
    folder = shutil.copytree(request.getfixturevalue(name), tmp_path / "e2rank-rankt5-resrank")
    before = loaded_models()
    assert system_of(folder) == system
    with load_reranker(folder) as reranker:
        assert type(reranker) is kind
        assert loaded_models() > before
    assert loaded_models() == before


def test_a_cross_encoder_without_the_file_is_known_by_its_config(tiny_t5, tmp_path):
    cross = write_bert_cross_encoder(tmp_path / "cross")
    for folder in (tiny_t5, cross):
        assert system_of(folder) == "rankt5"
        with load_reranker(folder, max_length=32) as reranker:
            assert isinstance(reranker, CrossEncoderReranker)
    stock = tmp_path / "stock"
    StockCrossEncoder(str(cross), device="cpu").save_pretrained(str(stock))
    assert (stock / "modules.json").is_file()
    assert system_of(stock) == "rankt5"


def test_a_classifier_is_an_encoder_only_where_that_is_said(tiny_bert, tmp_path):
    cross = write_bert_cross_encoder(tmp_path / "cross", num_labels=3)
    with pytest.raises(CheckpointError, match=r"3 labels.*system=\"e2rank\""):
        load_reranker(cross)
    assert system_of(cross, "e2rank") == "e2rank"
    pooled = shutil.copytree(tiny_bert, tmp_path / "pooled")
    config = json.loads((pooled / "config.json").read_text())
    config["architectures"] = ["BertForSequenceClassification"]
    (pooled / "config.json").write_text(json.dumps(config))
    assert system_of(pooled) == "e2rank"


def test_a_bare_language_model_does_not_say_what_it_is(tiny_qwen3):
    with pytest.raises(CheckpointError, match="says nowhere how it encodes"):
        load_reranker(tiny_qwen3)


def test_what_the_file_says_cannot_be_contradicted(tiny_rankt5):
    with pytest.raises(ValueError, match="says that it is 'rankt5', not 'resrank'"):
        load_reranker(tiny_rankt5, system="resrank")
    with pytest.raises(ValueError, match=r"system must be one of .*got 'bm25'"):
        load_reranker(tiny_rankt5, system="bm25")


def test_a_system_of_a_later_version_is_an_error(tiny_rankt5, tmp_path):
    folder = shutil.copytree(tiny_rankt5, tmp_path / "later")
    stated = json.loads((folder / "e2rank.json").read_text())
    (folder / "e2rank.json").write_text(json.dumps({**stated, "system": "e3rank"}))
    with pytest.raises(CheckpointError, match="system is 'e3rank', not one of"):
        load_reranker(folder)


def test_listwise_options_are_refused_by_systems_that_have_none(tiny_bert, tiny_resrank):
    with load_reranker(tiny_bert, listwise={"prompt_depth": 2}) as reranker:
        assert reranker.prompt_depth == 2
    with pytest.raises(ValueError, match=r"prompt_depth: only an E2Rank has this, .* is 'resrank'"):
        load_reranker(tiny_resrank, listwise={"prompt_depth": 2, "query_weight": None})


def test_a_ranker_of_pairs_has_no_encoder_and_a_resrank_has(tiny_rankt5, tiny_resrank, bert):
    with pytest.raises(CheckpointError, match="holds a cross-encoder, which scores pairs"):
        Encoder.from_pretrained(tiny_rankt5)
    with Encoder.from_pretrained(tiny_resrank) as encoder:
        assert encoder.fingerprint == bert.fingerprint


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_resrank", "tiny_rankt5"])
def test_an_option_that_the_system_does_not_have_is_refused_by_name(request, name):
    before = loaded_models()
    with pytest.raises(ValueError, match=r"has no option 'window'; it has .*device"):
        load_reranker(request.getfixturevalue(name), window=3)
    assert loaded_models() == before


def test_what_becomes_of_stored_vectors_is_checked_for_every_system(tiny_rankt5, tiny_resrank):
    for folder in (tiny_rankt5, tiny_resrank):
        with pytest.raises(ValueError, match=r"stored_vectors must be one of .* got 'all'"):
            load_reranker(folder, stored_vectors="all")
