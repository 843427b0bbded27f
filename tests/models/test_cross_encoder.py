"""Scores against independent computations, and a ranker's behaviour under many callers."""

from __future__ import annotations

import asyncio
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import CrossEncoder as StockCrossEncoder
from transformers import (
    AutoTokenizer,
    BertForSequenceClassification,
    Qwen3Config,
    Qwen3ForSequenceClassification,
    T5EncoderModel,
    T5ForConditionalGeneration,
)

from e2rank_rag.models.cross_encoder import CrossEncoder
from e2rank_rag.models.cross_encoder_folder import T5Ranker, save_cross_encoder
from e2rank_rag.models.runtime import loaded_models
from e2rank_rag.recipe import CrossEncoderRecipe
from tests.cross_encoders import write_bert_cross_encoder

QUERIES = ["cats purr", "where does the ferry go?"]
# Different lengths, so that batches are padded; the longest is cut.
DOCUMENTS = [
    ["cats purr again", "", "Bread rises because yeast turns sugar " * 2, "17"],
    ["A ferry crosses the strait between the two islands four times a day. " * 12],
]


@pytest.fixture(scope="module")
def tiny_cross(tmp_path_factory):
    return write_bert_cross_encoder(tmp_path_factory.mktemp("tiny-cross"))


@pytest.fixture(scope="module", params=["cls", "mean"])
def t5_encoder(request, tiny_t5, tmp_path_factory):
    """A T5 encoder with a head of its own: its folder and how it pools."""
    folder = tmp_path_factory.mktemp("t5-encoder")
    torch.manual_seed(4)
    recipe = CrossEncoderRecipe(
        structure="encoder-only", input="text", pooling=request.param, max_tokens=64
    )
    model = T5Ranker.from_pretrained(tiny_t5)
    save_cross_encoder(folder, model, AutoTokenizer.from_pretrained(tiny_t5), recipe)
    return folder, request.param


def t5_ids(folder, query, document, limit):
    """Stock: the whole text and `</s>`, truncated before that."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = f"Query: {query} Document: {document}"
    return tokenizer(text, truncation=True, max_length=limit, return_tensors="pt")


def by_hand(score):
    return [
        [score(query, document) for document in documents]
        for query, documents in zip(QUERIES, DOCUMENTS, strict=True)
    ]


def assert_scores(found, expected):
    assert [len(row) for row in found] == [len(row) for row in expected]
    for row, other in zip(found, expected, strict=True):
        assert row.dtype == np.float32
        np.testing.assert_allclose(row, other, atol=1e-5)


@torch.no_grad()
def test_scores_of_an_encoder_decoder_are_the_first_logits_of_the_score_token(tiny_t5):
    model = T5ForConditionalGeneration.from_pretrained(tiny_t5).eval()
    token = AutoTokenizer.from_pretrained(tiny_t5).convert_tokens_to_ids("<extra_id_10>")

    def score(query, document):
        batch = t5_ids(tiny_t5, query, document, 64)
        start = torch.tensor([[model.config.decoder_start_token_id]])
        return float(model(**batch, decoder_input_ids=start).logits[0, 0, token])

    with CrossEncoder.from_pretrained(tiny_t5, max_length=64) as ranker:
        found = ranker.score(QUERIES, DOCUMENTS)
    assert_scores(found.scores, by_hand(score))
    assert [used.documents for used in found.usage] == [4, 1]
    assert [used.documents_cut for used in found.usage] == [0, 1]
    assert found.usage[1].tokens == 64
    lengths = [len(t5_ids(tiny_t5, QUERIES[0], text, 64)["input_ids"][0]) for text in DOCUMENTS[0]]
    assert found.usage[0].tokens == sum(lengths)


@torch.no_grad()
def test_another_score_token_is_another_logit(tiny_t5):
    with (
        CrossEncoder.from_pretrained(tiny_t5) as ten,
        CrossEncoder.from_pretrained(tiny_t5, score_token="<extra_id_3>") as three,
    ):
        assert ten.recipe.score_token == "<extra_id_10>"
        assert ten.digest == three.digest
        assert not np.allclose(
            ten.score(QUERIES, DOCUMENTS).scores[0], three.score(QUERIES, DOCUMENTS).scores[0]
        )


@torch.no_grad()
def test_scores_of_an_encoder_alone_are_a_dense_layer_on_the_pooled_vector(tiny_t5, t5_encoder):
    folder, pooling = t5_encoder
    encoder = T5EncoderModel.from_pretrained(tiny_t5).eval()
    head = load_file(folder / "model.safetensors")

    def score(query, document):
        batch = t5_ids(tiny_t5, query, document, 64)
        hidden = encoder(**batch).last_hidden_state[0]
        vector = hidden[0] if pooling == "cls" else hidden.mean(0)
        return float(head["score.weight"][0] @ vector + head["score.bias"][0])

    with CrossEncoder.from_pretrained(folder) as ranker:
        assert_scores(ranker.score(QUERIES, DOCUMENTS).scores, by_hand(score))


@torch.no_grad()
def test_scores_of_a_bert_are_those_of_transformers(tiny_cross):
    model = BertForSequenceClassification.from_pretrained(tiny_cross).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_cross)

    def score(query, document):
        batch = tokenizer(  # lists, for it takes an empty text after another for none
            [query],
            [document],
            truncation="only_second",
            max_length=64,
            return_token_type_ids=True,
            return_tensors="pt",
        )
        return float(model(**batch).logits[0, 0])

    with CrossEncoder.from_pretrained(tiny_cross) as ranker:
        assert ranker.recipe.max_tokens == 64
        assert_scores(ranker.score(QUERIES, DOCUMENTS).scores, by_hand(score))


@pytest.mark.parametrize("max_length", [None, 32])
def test_sentence_transformers_opens_a_saved_bert_with_the_same_scores(
    tiny_cross, tmp_path, max_length
):
    with CrossEncoder.from_pretrained(tiny_cross, max_length=max_length) as ranker:
        folder = ranker.save(tmp_path / "saved")
        found = ranker.score(QUERIES, DOCUMENTS).scores
    stock = StockCrossEncoder(str(folder), device="cpu", local_files_only=True)
    expected = [
        stock.predict([(query, text) for text in texts], show_progress_bar=False)
        for query, texts in zip(QUERIES, DOCUMENTS, strict=True)
    ]
    assert_scores(found, expected)


@pytest.fixture(params=["encoder-decoder", "encoder-only", "segments"])
def folder(request, tiny_t5, tiny_cross, tmp_path):
    if request.param != "encoder-only":
        return tiny_t5 if request.param == "encoder-decoder" else tiny_cross
    recipe = CrossEncoderRecipe(structure="encoder-only", input="text", max_tokens=64)
    model = T5Ranker.from_pretrained(tiny_t5)
    return save_cross_encoder(
        tmp_path / "t5", model, AutoTokenizer.from_pretrained(tiny_t5), recipe
    )


def test_a_saved_ranker_opens_with_the_same_scores(folder, tmp_path):
    with CrossEncoder.from_pretrained(folder, max_length=48) as ranker:
        expected = ranker.score(QUERIES, DOCUMENTS)
        saved = ranker.save(tmp_path / "saved")
        with CrossEncoder.from_pretrained(saved) as again:
            found = again.score(QUERIES, DOCUMENTS)
            assert again.recipe == ranker.recipe
            assert again.digest == ranker.digest
    assert_scores(found.scores, expected.scores)
    assert found.usage == expected.usage


def test_a_pair_has_the_same_score_alone_and_in_a_batch(folder):
    with CrossEncoder.from_pretrained(folder, max_length=64) as ranker:
        together = ranker.score(QUERIES, DOCUMENTS).scores
        alone = [
            [ranker.score([query], [[text]]).scores[0][0] for text in texts]
            for query, texts in zip(QUERIES, DOCUMENTS, strict=True)
        ]
    assert_scores(together, alone)


def test_a_causal_model_is_padded_with_what_it_takes_for_padding(tiny_qwen3, tmp_path):
    folder = shutil.copytree(tiny_qwen3, tmp_path / "causal")
    config = Qwen3Config.from_pretrained(tiny_qwen3)
    # Not the tokenizer's, whose pad token may end a text.
    config.num_labels, config.pad_token_id = 1, 1
    torch.manual_seed(6)
    Qwen3ForSequenceClassification(config).save_pretrained(folder)
    texts = ["cats purr", "A ferry crosses the strait between the two islands.", "x " * 40]
    with CrossEncoder.from_pretrained(folder) as ranker:
        assert ranker.loaded.tokenizer.pad_token_id != 1
        ((together,), _) = ranker.score(["ferry"], [texts])
        alone = [ranker.score(["ferry"], [[text]]).scores[0][0] for text in texts]
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_an_output_layer_of_its_own_survives_saving(tiny_t5, tmp_path):
    """As in T5 1.1 and Flan-T5, whose decoder output is not scaled either."""
    own = tmp_path / "own"
    shutil.copytree(tiny_t5, own)
    config = (own / "config.json").read_text()
    assert '"tie_word_embeddings": true' in config
    config = config.replace('"tie_word_embeddings": true', '"tie_word_embeddings": false')
    config = config.replace('"scale_decoder_outputs": true,', "")
    (own / "config.json").write_text(config)
    weights = load_file(own / "model.safetensors")
    torch.manual_seed(7)
    weights["lm_head.weight"] = torch.randn_like(weights["shared.weight"])
    save_file(weights, own / "model.safetensors", metadata={"format": "pt"})
    with CrossEncoder.from_pretrained(own) as ranker, CrossEncoder.from_pretrained(tiny_t5) as tied:
        expected = ranker.score(QUERIES, DOCUMENTS).scores
        assert not np.allclose(expected[0], tied.score(QUERIES, DOCUMENTS).scores[0], atol=1e-2)
        with CrossEncoder.from_pretrained(ranker.save(tmp_path / "saved")) as again:
            assert_scores(again.score(QUERIES, DOCUMENTS).scores, expected)


def test_many_threads_and_tasks_get_the_scores_of_their_own_pairs(folder):
    with CrossEncoder.from_pretrained(folder) as ranker:
        expected = ranker.score(QUERIES, DOCUMENTS).scores

        def ask(number):
            return ranker.score([QUERIES[number % 2]], [DOCUMENTS[number % 2]]).scores[0]

        async def gathered():
            return await asyncio.gather(
                *(ranker.run_async(lambda number=number: ask(number)) for number in range(16))
            )

        with ThreadPoolExecutor(8) as pool:
            found = [*pool.map(ask, range(32)), *asyncio.run(gathered())]
    for number, scores in enumerate(found):
        np.testing.assert_allclose(scores, expected[number % 2], atol=1e-5)


def test_rankers_of_one_model_share_its_weights_until_the_last_is_closed(tiny_t5):
    before = loaded_models()
    first = CrossEncoder.from_pretrained(tiny_t5)
    second = CrossEncoder.from_pretrained(tiny_t5, max_length=32)
    assert loaded_models() == before + 1
    first.close()
    first.close()
    assert second.score(["cats"], [["dogs"]]).scores[0].shape == (1,)
    second.close()
    assert loaded_models() == before
    with pytest.raises(RuntimeError, match=r"was closed; open it again with CrossEncoder"):
        second.score(["cats"], [["dogs"]])


def test_no_queries_and_no_documents_are_no_scores(tiny_t5):
    with CrossEncoder.from_pretrained(tiny_t5) as ranker:
        assert ranker.score([], []) == ([], ())
        found = ranker.score(["cats"], [[]])
        assert [row.tolist() for row in found.scores] == [[]]
        assert (found.usage[0].documents, found.usage[0].tokens) == (0, 0)


def test_what_cannot_be_scored_is_refused(tiny_t5):
    with CrossEncoder.from_pretrained(tiny_t5) as ranker:
        with pytest.raises(ValueError, match="1 queries came with 2 lists"):
            ranker.score(["cats"], [["a"], ["b"]])
        with pytest.raises(TypeError, match="document 1 is a int, not a string"):
            ranker.score(["cats"], [["a", 2]])
        with pytest.raises(TypeError, match="expected a list of texts, got one string"):
            ranker.score(["cats"], ["dogs"])


def test_scores_that_are_no_numbers_are_an_error(tiny_cross, tmp_path):
    model = BertForSequenceClassification.from_pretrained(tiny_cross)
    torch.nn.init.constant_(model.classifier.bias, float("nan"))
    broken = shutil.copytree(tiny_cross, tmp_path / "broken")
    model.save_pretrained(broken)
    with (
        CrossEncoder.from_pretrained(broken) as ranker,
        pytest.raises(FloatingPointError, match=r"float32 that are not finite; .*float32"),
    ):
        ranker.score(["cats"], [["dogs"]])
