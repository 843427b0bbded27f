"""An encoder that notes its prompts makes the vectors of the one inside."""

from __future__ import annotations

import numpy as np

from e2rank_rag.report.shown import PromptEncoder

TEXTS = ["cats purr", "dogs bark", "birds sing"]


def test_the_vectors_are_those_of_the_encoder_and_the_prompts_are_noted(bert):
    spy = PromptEncoder(bert, 2)
    made = spy.encode_listwise(["q", "r"], [TEXTS, TEXTS[:1]])
    plain = bert.encode_listwise(["q", "r"], [TEXTS, TEXTS[:1]], depth=2)
    np.testing.assert_array_equal(made.embeddings, plain.embeddings)
    assert [prompt.texts for prompt in spy.prompts] == [TEXTS[:2], TEXTS[:1]]
    assert tuple(prompt.usage for prompt in spy.prompts) == plain.usage


def test_only_the_shown_documents_are_reordered(bert):
    spy = PromptEncoder(bert, 2, reordered=lambda texts: texts[::-1])
    made = spy.encode_listwise(["q"], [TEXTS])
    plain = bert.encode_listwise(["q"], [["dogs bark", "cats purr"]], depth=2)
    np.testing.assert_array_equal(made.embeddings, plain.embeddings)
    assert spy.prompts[0].texts == ["dogs bark", "cats purr"]


def test_no_prompt_is_noted_where_the_whole_weight_is_on_the_query(bert):
    spy = PromptEncoder(bert, 2)
    spy.encode_listwise(["q"], [TEXTS], query_weight=1.0)
    assert spy.prompts == []


async def test_everything_else_is_the_encoders(bert):
    spy = PromptEncoder(bert, 2)
    kept = ("name", "dim", "fingerprint", "feedback", "evidence")
    assert [getattr(spy, name) for name in kept] == [getattr(bert, name) for name in kept]
    np.testing.assert_array_equal(spy.encode_queries(["q"]), bert.encode_queries(["q"]))
    np.testing.assert_array_equal(spy.encode_documents(["d"]), bert.encode_documents(["d"]))
    assert await spy.run_async(lambda: 3) == 3
