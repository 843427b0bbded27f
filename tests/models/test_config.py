"""How many tokens a model can place, tried on tiny models of many families."""

from __future__ import annotations

import logging
import shutil

import numpy as np
import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModel, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from e2rank_rag.errors import CheckpointError
from e2rank_rag.models.config import first_position, positions, why_unserved
from e2rank_rag.models.encoder import Encoder
from e2rank_rag.prompts import PLAIN

ROWS = 41
SIZES = {
    **dict.fromkeys(("hidden_size", "d_model", "dim", "emb_dim", "n_embd", "embedding_size"), 32),
    **dict.fromkeys(("intermediate_size", "hidden_dim", "d_ff", "encoder_ffn_dim"), 48),
    **dict.fromkeys(("decoder_ffn_dim", "ffn_dim", "n_inner"), 48),
    **dict.fromkeys(("num_hidden_layers", "n_layers", "n_layer", "num_layers"), 1),
    **dict.fromkeys(("encoder_layers", "decoder_layers"), 1),
    **dict.fromkeys(("num_attention_heads", "n_heads", "n_head", "num_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads",), 2),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len"), ROWS),
    "entity_vocab_size": 9,
    "entity_emb_size": 8,
    "attention_window": [4],
    "attention_type": "original_full",
}

BEHIND_PAD = [
    "camembert",
    "data2vec-text",
    "ibert",
    "longformer",
    "luke",
    "roberta",
    "roberta-prelayernorm",
    "xlm-roberta",
    "xlm-roberta-xl",
    "esm",
]
OTHERS = ["albert", "bert", "big_bird", "deberta-v2", "distilbert", "electra", "mobilebert"]
OTHERS += ["megatron-bert", "modernbert", "mpnet", "roformer", "gpt2", "opt", "xlm", "mpt"]


def config_of(kind, pad):
    made = CONFIG_MAPPING[kind]
    known = made()
    sizes = {name: value for name, value in SIZES.items() if hasattr(known, name)}
    return made(**sizes, vocab_size=500, pad_token_id=pad)


def write_model(folder, kind, pad, tokenizer):
    torch.manual_seed(4)
    AutoModel.from_config(config_of(kind, pad)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("kind", "pad"),
    [*((kind, pad) for kind in BEHIND_PAD for pad in (0, 3)), *((k, 3) for k in OTHERS)],
)
def test_position_limits_come_from_the_config_and_hold_for_texts_and_prompts(
    tiny_bert, tmp_path, caplog, kind, pad
):
    long = "cats purr, dogs bark " * 30
    folder = write_model(tmp_path / kind, kind, pad, tiny_bert)
    limit = ROWS - (pad + 1 if kind in BEHIND_PAD else 2 if kind == "mpnet" else 0)
    with (
        Encoder.from_pretrained(folder, pooling="mean", prompts=PLAIN) as encoder,
        caplog.at_level(logging.WARNING),
    ):
        assert encoder.recipe.document_tokens == limit
        assert np.isfinite(encoder.encode_documents([long, "cats"])).all()
        assert f"1 of 2 documents were longer than {limit} tokens" in caplog.text
        encoding = encoder.encode_listwise([long, "cats"], [[long, long], [long]])
        assert max(usage.tokens for usage in encoding.usage) == limit
        assert encoding.usage[0].query_cut


@pytest.mark.slow
@pytest.mark.parametrize("pad", [0, 1, 3])
@pytest.mark.parametrize("kind", sorted(MODEL_FOR_MASKED_LM_MAPPING_NAMES))
def test_every_family_takes_as_many_tokens_as_we_say(kind, pad):
    if why_unserved(kind) is not None:
        pytest.skip(why_unserved(kind))
    try:
        config = config_of(kind, pad)
    except Exception as error:
        pytest.skip(f"its sizes depend on one another: {error}"[:80])
    model = AutoModel.from_config(config).eval()
    ids = torch.full((1, positions(config)), 7)
    with torch.inference_mode():
        states = model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    assert states.shape[1] == positions(config)


def test_first_positions_are_behind_the_pad_tokens():
    assert [first_position(config_of("roberta", pad)) for pad in (0, 1, 3)] == [1, 2, 4]
    assert [first_position(config_of("mpnet", pad)) for pad in (0, 1, 3)] == [2, 2, 2]
    assert [first_position(config_of("bert", pad)) for pad in (0, 1, 3)] == [0, 0, 0]


def test_a_model_without_a_limit_gets_the_usual_one():
    assert positions(CONFIG_MAPPING["xlnet"]()) == positions(CONFIG_MAPPING["bloom"]()) == 512


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("convbert", "depends on the padding"),
        ("xmod", "reads more than tokens"),
        ("vit", "no text architecture of transformers"),
        ("bart", "encoder-decoder"),
    ],
)
def test_a_family_that_cannot_be_served_is_refused(tiny_bert, tmp_path, kind, reason):
    folder = shutil.copytree(tiny_bert, tmp_path / "model")
    config_of(kind, 1).save_pretrained(folder)
    with pytest.raises(CheckpointError, match=reason):
        Encoder.from_pretrained(folder)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model_type": "roberta", "pad_token_id": None}, "pad_token_id, which it does not state"),
        ({"model_type": "roberta", "max_position_embeddings": 4}, "can place 2 tokens only"),
        ({"model_type": "big_bird", "attention_type": "block_sparse"}, "earlier texts"),
        ({"model_type": "t5", "relative_attention_max_distance": 7}, "buckets for distances"),
    ],
)
def test_a_configuration_that_cannot_be_served_is_refused(tiny_bert, tmp_path, changes, reason):
    folder = shutil.copytree(tiny_bert, tmp_path / "model")
    config = CONFIG_MAPPING[changes["model_type"]](**changes)
    config.save_pretrained(folder)
    with pytest.raises(CheckpointError, match=reason):
        Encoder.from_pretrained(folder)
