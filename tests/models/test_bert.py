"""BERT's shorter forward pass against the one of transformers."""

from __future__ import annotations

import pytest
import torch
from transformers import BertConfig, BertModel

from e2rank_rag.models import bert
from e2rank_rag.models.e2rank import Backbone, pool

# Rows of 12, 7 and 3 tokens.
LENGTHS = (12, 7, 3)
IDS = torch.arange(36).reshape(3, 12) % 50
MASK = (torch.arange(12) < torch.tensor(LENGTHS)[:, None]).long()


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50,
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=600,
        attn_implementation="sdpa",
    )
    return BertModel(config).eval()


def original(model, ids, mask, slots):
    """Vectors by transformers' forward pass and pooling over all its states."""
    with torch.inference_mode():
        hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
        return torch.nn.functional.normalize(pool(hidden, slots), dim=-1)


def ours(model, ids, mask, slots):
    with torch.inference_mode():
        assert bert.fits(model)
        return Backbone(model)(ids, mask, slots)


def slots_of(*rows):
    slots = torch.zeros(3, 12, dtype=torch.long)
    for row, places in enumerate(rows):
        for place, slot in places.items():
            slots[row, place] = slot
    return slots


SLOTS = {
    "every token": MASK,
    "the first token": slots_of({0: 1}, {0: 1}, {0: 1}),
    "spans of different lengths": slots_of({4: 1, 5: 1, 6: 1}, {6: 1}, {1: 1, 2: 1}),
    "several vectors for a text": slots_of({1: 2, 3: 1, 11: 2}, {0: 1, 5: 2}, {2: 1, 0: 2}),
}


@pytest.mark.parametrize("slots", SLOTS.values(), ids=SLOTS)
@pytest.mark.parametrize("rows", [3, 1], ids=["padded", "not padded"])
def test_vectors_equal_those_of_the_original_pass(model, slots, rows):
    given = IDS[:rows], MASK[:rows], slots[:rows]
    torch.testing.assert_close(ours(model, *given), original(model, *given), rtol=0, atol=1e-6)


@pytest.mark.parametrize("slots", SLOTS.values(), ids=SLOTS)
def test_in_bfloat16_vectors_are_as_near_to_float32_as_the_originals(model, slots):
    exact = original(model, IDS, MASK, slots)
    low = BertModel(model.config).eval()
    low.load_state_dict(model.state_dict())
    low.to(torch.bfloat16)
    cosines = (exact * ours(low, IDS, MASK, slots)).sum(-1)
    assert cosines.min() > 0.999


def test_texts_beyond_the_products_are_read_too(model):
    ids = torch.arange(2 * 560).reshape(2, 560) % 50
    mask = torch.ones_like(ids)
    low = BertModel(model.config).eval()
    low.load_state_dict(model.state_dict())
    exact = original(model, ids, mask, mask)
    assert (exact * ours(low.to(torch.bfloat16), ids, mask, mask)).sum(-1).min() > 0.999


def test_only_pooled_tokens_reach_the_last_layer(model):
    seen = []
    handle = model.encoder.layer[-1].intermediate.register_forward_hook(
        lambda module, given, result: seen.append(tuple(given[0].shape))
    )
    ours(model, IDS, MASK, SLOTS["spans of different lengths"])
    ours(model, IDS, MASK, MASK)
    handle.remove()
    assert seen == [(3, 3, 24), (3, 12, 24)]


def test_padding_of_any_length_changes_no_vector(model):
    alone = ours(model, IDS[2:, :3], MASK[2:, :3], MASK[2:, :3])
    torch.testing.assert_close(ours(model, IDS, MASK, MASK)[2:], alone, rtol=0, atol=1e-6)


def test_a_model_in_training_with_gradients_or_with_hooks_takes_the_original_pass(model):
    assert not bert.fits(model)  # with gradients
    with torch.inference_mode():
        assert bert.fits(model)
        model.train()
        assert not bert.fits(model)
        model.eval()
        handle = model.register_forward_hook(lambda *_: None)
        assert not bert.fits(model)
        handle.remove()


@pytest.mark.parametrize(
    "change", [{"is_decoder": True}, {"is_causal": True}, {"attn_implementation": "eager"}]
)
def test_another_kind_of_bert_takes_the_original_pass(model, change):
    config = BertConfig.from_dict({**model.config.to_dict(), "attn_implementation": "sdpa"})
    made = BertModel(BertConfig(**{**config.to_diff_dict(), **change})).eval()
    with torch.inference_mode():
        assert not bert.fits(made)
