"""What a folder says of itself is believed, and what it lacks is named."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from transformers import AutoTokenizer, T5EncoderModel, T5ForConditionalGeneration

from e2rank_rag.errors import CheckpointError
from e2rank_rag.models.cross_encoder import CrossEncoder
from e2rank_rag.models.cross_encoder_folder import (
    T5Ranker,
    head_modules,
    load_cross_encoder,
    read_cross_encoder_recipe,
    save_cross_encoder,
)
from e2rank_rag.models.encoder import Encoder
from e2rank_rag.recipe import CrossEncoderRecipe
from tests.cross_encoders import write_bert_cross_encoder

ENCODER_ONLY = CrossEncoderRecipe(structure="encoder-only", input="text", max_tokens=64)


@pytest.fixture(scope="module")
def tiny_cross(tmp_path_factory):
    return write_bert_cross_encoder(tmp_path_factory.mktemp("tiny-cross"))


@pytest.fixture(scope="module")
def t5_encoder(tiny_t5, tmp_path_factory):
    folder = tmp_path_factory.mktemp("t5-encoder")
    tokenizer = AutoTokenizer.from_pretrained(tiny_t5)
    return save_cross_encoder(folder, T5Ranker.from_pretrained(tiny_t5), tokenizer, ENCODER_ONLY)


def test_a_t5_is_read_as_an_encoder_decoder_with_the_token_of_the_paper(tiny_t5):
    assert read_cross_encoder_recipe(tiny_t5, name="t5") == CrossEncoderRecipe(
        structure="encoder-decoder", input="text", score_token="<extra_id_10>", max_tokens=512
    )


def test_a_cross_encoder_is_read_as_segments_within_its_positions(tiny_cross):
    assert read_cross_encoder_recipe(tiny_cross, name="bert") == CrossEncoderRecipe(
        structure="encoder-only", input="segments", max_tokens=64
    )


def test_what_the_caller_states_takes_the_place_of_what_a_folder_says(t5_encoder):
    assert read_cross_encoder_recipe(t5_encoder, name="t5") == ENCODER_ONLY
    stated = read_cross_encoder_recipe(t5_encoder, name="t5", pooling="mean", max_tokens=32)
    assert (stated.pooling, stated.max_tokens) == ("mean", 32)


def test_a_t5_takes_more_tokens_than_it_was_pretrained_with_and_a_bert_does_not(
    tiny_t5, tiny_cross
):
    assert read_cross_encoder_recipe(tiny_t5, name="t5", max_tokens=1024).max_tokens == 1024
    with pytest.raises(ValueError, match="max_tokens is 65, but bert can place 64 tokens only"):
        read_cross_encoder_recipe(tiny_cross, name="bert", max_tokens=65)


def test_a_causal_model_without_a_pad_token_is_refused_before_it_is_trained(tiny_qwen3):
    recipe = CrossEncoderRecipe(structure="encoder-only", input="segments")
    with pytest.raises(CheckpointError, match="is a qwen3 without a pad token"):
        load_cross_encoder(tiny_qwen3, recipe, dtype=torch.float32, fresh_head=True)


def test_a_t5_encoder_without_a_trained_head_is_refused(tiny_t5, tmp_path):
    reason = r"is no cross-encoder: it lacks score.bias and 1 more tensors of T5Ranker; train one"
    with CrossEncoder.from_pretrained(tiny_t5), pytest.raises(CheckpointError, match=reason):
        CrossEncoder.from_pretrained(tiny_t5, structure="encoder-only")
    bare = tmp_path / "bare"
    T5EncoderModel.from_pretrained(tiny_t5).save_pretrained(bare)
    AutoTokenizer.from_pretrained(tiny_t5).save_pretrained(bare)
    with pytest.raises(CheckpointError, match=reason):
        CrossEncoder.from_pretrained(bare)


def test_a_bert_without_a_classifier_is_refused(tiny_bert):
    reason = r"is no cross-encoder: it lacks classifier.bias .*; train one: stage rankt5"
    with pytest.raises(CheckpointError, match=reason):
        CrossEncoder.from_pretrained(tiny_bert)


def test_a_bert_has_no_decoder(tiny_cross):
    with pytest.raises(CheckpointError, match=r"has no decoder: bert is encoder-only"):
        CrossEncoder.from_pretrained(tiny_cross, structure="encoder-decoder")


def test_a_ranker_of_one_structure_is_not_opened_as_another(t5_encoder):
    with pytest.raises(CheckpointError, match="is encoder-only, not encoder-decoder"):
        CrossEncoder.from_pretrained(t5_encoder, structure="encoder-decoder")


def test_a_model_of_several_scores_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="gives 3 numbers per pair"):
        CrossEncoder.from_pretrained(write_bert_cross_encoder(tmp_path, num_labels=3))


def test_a_folder_of_another_system_is_named(bert, tmp_path):
    folder = bert.save(tmp_path / "encoder")
    with pytest.raises(CheckpointError, match=r"is a model of the system 'e2rank', as its e2rank"):
        CrossEncoder.from_pretrained(folder)


def test_a_ranker_is_no_encoder(t5_encoder):
    with pytest.raises(CheckpointError, match="holds a cross-encoder, which scores pairs"):
        Encoder.from_pretrained(t5_encoder)


def test_a_score_token_that_the_tokenizer_lacks_is_refused(tiny_t5):
    with pytest.raises(CheckpointError, match="no token '<extra_id_99>' to read the score off"):
        CrossEncoder.from_pretrained(tiny_t5, score_token="<extra_id_99>")


@pytest.mark.parametrize(
    ("fixture", "stated", "reason"),
    [
        ("tiny_t5", {"pooling": "mean"}, "pooling is for an encoder-only T5"),
        ("tiny_cross", {"pooling": "mean"}, "pooling is for an encoder-only T5"),
        ("tiny_cross", {"score_token": "<extra_id_1>"}, "score_token is for an encoder-decoder"),
        ("tiny_t5", {"max_length": 3}, "greater than or equal to 16"),
    ],
)
def test_settings_that_do_not_fit_the_model_are_refused(request, fixture, stated, reason):
    with pytest.raises(ValueError, match=reason):
        CrossEncoder.from_pretrained(request.getfixturevalue(fixture), **stated)


def test_pickled_weights_are_not_read(tiny_t5, tmp_path):
    folder = shutil.copytree(tiny_t5, tmp_path / "pickled")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="pickled weights are not read"):
        CrossEncoder.from_pretrained(folder)


def test_a_recipe_of_the_future_is_refused(t5_encoder, tmp_path):
    folder = shutil.copytree(t5_encoder, tmp_path / "future")
    path = folder / "e2rank.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 2}))
    with pytest.raises(CheckpointError, match="is not a recipe this version reads"):
        CrossEncoder.from_pretrained(folder)


def test_the_prompt_is_saved_with_the_model(t5_encoder):
    saved = json.loads((t5_encoder / "e2rank.json").read_text())
    assert saved["system"] == "rankt5"
    assert saved["prompt"] == {"template": "Query: {query} Document: {document}"}


def test_a_fresh_head_is_drawn_by_the_seed_and_all_else_is_read(tiny_bert, tiny_t5):
    segments = CrossEncoderRecipe(structure="encoder-only", input="segments")
    for folder, recipe in ((tiny_bert, segments), (tiny_t5, ENCODER_ONLY)):
        models = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            models.append(load_cross_encoder(folder, recipe, dtype=torch.float32, fresh_head=True))
        one, same, other = (model.state_dict() for model in models)
        heads = tuple(head_modules(models[0]))
        for name, tensor in one.items():
            assert torch.equal(tensor, same[name])
            drawn = name.startswith(heads) and name.endswith("weight")
            assert torch.equal(tensor, other[name]) is not drawn
    original = T5ForConditionalGeneration.from_pretrained(tiny_t5).encoder.state_dict()
    for name, tensor in original.items():
        assert torch.equal(tensor, one[f"encoder.{name}"])
