"""A cross-encoder's order is that of its scores, and the scores are the model's own."""

from __future__ import annotations

import shutil
from contextlib import aclosing

import pytest
import torch
from transformers import (
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
)

from e2rank_rag.errors import CheckpointError
from e2rank_rag.models.runtime import BATCH_TOKENS
from e2rank_rag.training.labels.cross_encoder import CrossEncoderTeacher
from e2rank_rag.training.labels.teacher import TeacherError
from tests.conftest import TEXT, xlmr_tokenizer
from tests.cross_encoders import SIZES, write_bert_cross_encoder

QUERY = "cats purr"
DOCUMENTS = tuple(line for line in TEXT if "cats" in line or "ferry" in line or "Bread" in line)


@pytest.fixture(scope="module")
def tiny_cross(tmp_path_factory):
    return write_bert_cross_encoder(tmp_path_factory.mktemp("tiny-cross"))


@pytest.fixture(scope="module")
def tiny_cross_xlmr(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny-cross-xlmr")
    tokenizer = xlmr_tokenizer()
    config = XLMRobertaConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=66,
        num_labels=1,
        type_vocab_size=1,
        pad_token_id=tokenizer.pad_token_id,
        **SIZES,
    )
    torch.manual_seed(6)
    XLMRobertaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


async def order(folder, documents=DOCUMENTS, query=QUERY, **options):
    async with aclosing(CrossEncoderTeacher(folder, device="cpu", **options)) as teacher:
        return await teacher.order(query, documents)


def score_by_hand(model, tokenizer, query, document, max_tokens=64):
    """One pair, no padding, `[CLS] query [SEP] document [SEP]` with segments 0 and 1."""
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    first, second = (
        tokenizer.convert_tokens_to_ids(tokenizer.tokenize(text, split_special_tokens=True))
        for text in (query, document)
    )
    first = [cls, *first, sep]
    second = [*second[: max_tokens - len(first) - 1], sep]
    with torch.no_grad():
        output = model(
            input_ids=torch.tensor([first + second]),
            token_type_ids=torch.tensor([[0] * len(first) + [1] * len(second)]),
        )
    return float(output.logits[0, 0])


@pytest.mark.parametrize("query", [QUERY, "cats sleep, dogs dig " * 8])
async def test_documents_are_ordered_by_the_score_of_each_pair(tiny_cross, query):
    cuts = [" ".join(TEXT[start : start + 4]) for start in range(6, 10)]
    documents = [*DOCUMENTS, *cuts, *(text.replace(" ", " [SEP] ", 2) for text in DOCUMENTS)]
    judgement = await order(tiny_cross, documents, query)
    model = BertForSequenceClassification.from_pretrained(tiny_cross).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tiny_cross)
    scores = [score_by_hand(model, tokenizer, query, document) for document in documents]
    ordered = [scores[number - 1] for number in judgement.ranking]
    assert ordered == pytest.approx(sorted(scores, reverse=True), abs=1e-5)
    assert sorted(judgement.ranking) == list(range(1, len(documents) + 1))
    assert judgement.cut >= len(cuts)
    assert (judgement.problem, judgement.prompt_tokens, judgement.unmetered) == ("", 0, 0)


async def test_the_size_of_a_batch_does_not_matter(tiny_cross, monkeypatch):
    whole = await order(tiny_cross, TEXT)
    monkeypatch.setitem(BATCH_TOKENS, "cpu", 64)
    assert await order(tiny_cross, TEXT) == whole
    assert sorted(whole.ranking) == list(range(1, len(TEXT) + 1))


async def test_equal_scores_keep_the_order_of_their_documents(tiny_cross):
    judgement = await order(tiny_cross, ["cats purr"] * 5)
    assert judgement.ranking == (1, 2, 3, 4, 5)


async def test_a_model_without_segments_is_asked_without_them_and_within_its_positions(
    tiny_cross_xlmr,
):
    judgement = await order(tiny_cross_xlmr, [*TEXT, " ".join(TEXT)])
    assert sorted(judgement.ranking) == list(range(1, len(TEXT) + 2))
    assert judgement.cut >= 1


async def test_only_documents_are_cut(tiny_cross):
    judgement = await order(tiny_cross, ["cats sleep " * 30, "dogs"], max_tokens=16)
    assert judgement.cut == 1
    long_query = "cats " * 13
    assert (await order(tiny_cross, ["cats"], long_query, max_tokens=16)).problem == (
        "query leaves no room for documents"
    )
    assert (await order(tiny_cross, ["cats"], "cats " * 12, max_tokens=16)).ranking == (1,)


async def test_a_query_without_a_token_is_a_problem_and_ends_nothing(tiny_cross):
    assert (await order(tiny_cross, ["cats"], " ")).problem == "query has no token"


@pytest.mark.parametrize(("asked", "used"), [(None, 64), (16, 16), (9999, 64)])
def test_the_record_says_model_length_and_terms_where_given(tiny_cross, asked, used):
    teacher = CrossEncoderTeacher(tiny_cross, device="cpu", max_tokens=asked)
    assert teacher.record == {"model": str(tiny_cross), "max_tokens": used}
    assert teacher.limit == f"{used} tokens with their query"
    teacher = CrossEncoderTeacher(tiny_cross, device="cpu", terms="Apache-2.0")
    assert teacher.record["terms"] == "Apache-2.0"


def test_an_embedding_model_is_refused_since_its_head_would_be_random(tiny_bert):
    with pytest.raises(CheckpointError, match=r"is no cross-encoder: it lacks .*classifier"):
        CrossEncoderTeacher(tiny_bert)


def test_a_model_of_several_scores_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="gives 3 numbers per pair"):
        CrossEncoderTeacher(write_bert_cross_encoder(tmp_path, num_labels=3))


def test_a_folder_that_is_no_model_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        CrossEncoderTeacher(tmp_path)


async def test_a_score_that_is_no_number_ends_it(tiny_cross, tmp_path):
    folder = tmp_path / "broken"
    shutil.copytree(tiny_cross, folder)
    model = BertForSequenceClassification.from_pretrained(folder)
    torch.nn.init.constant_(model.classifier.bias, float("nan"))
    model.save_pretrained(folder)
    with pytest.raises(TeacherError, match="broken gave a score that is no finite number"):
        await order(folder)
