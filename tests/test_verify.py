"""Verification embeds the release's example, and says how far the cosines are from its own."""

from __future__ import annotations

import numpy as np
import pytest

from e2rank_rag.verify import DOCUMENTS, PUBLISHED, QUERIES, TOLERANCE, Verification, verify

PLAIN = np.array(PUBLISHED["plain, vLLM"])
LISTWISE = np.array(PUBLISHED["listwise, vLLM"])

# As the release's README builds it: no line break before the query, none of the usual space.
README_PROMPT = (
    "<|im_start|>user\n"
    "Given a web search query and some relevant documents, rerank the documents that answer the "
    "query:\nDocuments:\n"
    "[1] The capital of China is Beijing.<|endoftext|>\n"
    "[2] Gravity is a force that attracts two bodies towards each other. It gives weight to "
    "physical objects and is responsible for the movement of planets around the sun.<|endoftext|>"
    "Search Query:{query}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
)


def test_cosines_are_queries_by_documents(qwen3):
    result = verify(qwen3)
    documents = qwen3.encode_documents(DOCUMENTS)
    np.testing.assert_allclose(result.plain, qwen3.encode_queries(QUERIES) @ documents.T, atol=1e-5)
    prompts = [README_PROMPT.format(query=query) for query in QUERIES]
    np.testing.assert_allclose(
        result.listwise, qwen3.encode_verbatim(prompts) @ documents.T, atol=1e-5
    )


def test_random_weights_do_not_agree(qwen3):
    assert not verify(qwen3).agrees


def test_the_published_cosines_agree_with_themselves():
    result = Verification(PLAIN, LISTWISE)
    assert result.largest_difference == 0.0
    assert result.agrees


def test_the_published_transformers_run_agrees_with_the_vllm_run():
    # 0.0620 against 0.0603 and 0.5627 against 0.5596: at most 0.0031 apart.
    result = Verification(np.array(PUBLISHED["plain, transformers"]), LISTWISE)
    assert result.largest_difference == pytest.approx(0.0031)
    assert result.agrees


@pytest.mark.parametrize("part", ["plain", "listwise"])
@pytest.mark.parametrize(("off", "agrees"), [(0.99, True), (-0.99, True), (1.01, False)])
def test_one_cosine_beyond_the_tolerance_is_enough(part, off, agrees):
    parts = {"plain": PLAIN.copy(), "listwise": LISTWISE.copy()}
    parts[part][1, 0] += off * TOLERANCE
    assert Verification(**parts).agrees is agrees


def test_nan_does_not_agree():
    plain = PLAIN.copy()
    plain[0, 0] = np.nan
    assert not Verification(plain, LISTWISE).agrees


def test_other_models_are_refused_with_the_reason(bert):
    with pytest.raises(ValueError, match="does not encode like the released E2Rank models"):
        verify(bert)
