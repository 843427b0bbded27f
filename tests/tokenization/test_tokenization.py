"""Ids equal the released way where the text is clean, and stay harmless where it is not."""

from __future__ import annotations

import random

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from e2rank_rag.errors import CheckpointError
from e2rank_rag.models.encoder import Encoder
from e2rank_rag.models.tokenizer_files import load_tokenizer
from e2rank_rag.prompts import E2RANK, ChatListwise, Prompts, SpanListwise, Task
from e2rank_rag.tokenization import (
    Tokens,
    batches_by_length,
    collate,
    pad_id,
    padded,
    plain_tokenizer,
    token_id,
)
from tests.kit import watchdog
from tests.tokenizing import (
    BERT,
    END,
    QWEN,
    SEAMS,
    SPECIALS,
    released_listwise,
    text_tokenizer,
)


@pytest.fixture(params=["qwen", "bert", "xlmr"])
def any_tokenizer(request):
    return request.getfixturevalue(request.param)


# The released ids


@pytest.mark.parametrize("text", SEAMS)
def test_listwise_ids_equal_the_released_template_encoded_as_one_string(qwen, released, text):
    documents = [text, "A bridge.", text]
    (tokens,), (usage,) = qwen.listwise([text], [documents], 20)
    assert tokens.ids == released_listwise(released, text, documents)
    assert (usage.documents, usage.documents_cut, usage.query_cut) == (3, 0, False)
    assert usage.tokens == len(tokens.ids)


@pytest.mark.parametrize("text", SEAMS)
def test_query_ids_equal_the_released_ones(qwen, released, text):
    (tokens,) = qwen.queries([text])
    instruction = "Given a web search query, retrieve relevant passages that answer the query"
    assert tokens.ids == released(f"Instruct: {instruction}\nQuery:{text}{END}")["input_ids"]


@pytest.mark.parametrize("text", SEAMS)
def test_document_ids_equal_the_released_ones(qwen, released, text):
    (tokens,) = qwen.documents([text])
    assert tokens.ids == released(text + END)["input_ids"]


def test_the_seam_of_query_and_text_is_one_token_where_the_tokenizer_joins_it(released):
    # The reason for encoding a turn as one string: the pieces alone give other ids.
    joined = released("Query:cats")["input_ids"]
    assert joined != released("Query:")["input_ids"] + released("cats")["input_ids"]


@pytest.mark.parametrize("text", ["cats purr", "Die Katze 図書館 x==y", "  cats  "])
def test_bert_ids_equal_the_tokenizers_own(bert, tiny_bert, text):
    expected = AutoTokenizer.from_pretrained(tiny_bert)(text)["input_ids"]
    assert bert.queries([text])[0].ids == expected
    assert bert.documents([text])[0].ids == expected


@pytest.mark.parametrize("text", ["cats purr", "Die Katze 猫 x==y", "a < b 🙂 > c"])
def test_unigram_ids_equal_the_tokenizers_own(xlmr, tiny_xlmr, text):
    expected = AutoTokenizer.from_pretrained(tiny_xlmr)(text)["input_ids"]
    assert xlmr.documents([text])[0].ids == expected


def test_span_prompt_is_the_query_and_then_each_document_with_its_separator(bert, tiny_bert):
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    (tokens,), (usage,) = bert.listwise(["cats"], [["dogs bark", "a ferry"]], 8)
    text = "[CLS] cats [SEP] dogs bark [SEP] a ferry [SEP]"
    assert tokens.ids == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert (usage.documents, usage.documents_cut, usage.tokens) == (2, 0, len(tokens.ids))


# The end token


@pytest.mark.parametrize("limit", [40, 41, 64, 100, 512])
@pytest.mark.parametrize("words", [1, 30, 400])
def test_end_token_stands_once_and_last_whatever_is_cut(tiny_qwen3, limit, words):
    recipe = QWEN.model_copy(update={"query_tokens": limit, "document_tokens": limit})
    tokenizer = text_tokenizer(tiny_qwen3, recipe)
    end = token_id(load_tokenizer(tiny_qwen3), END)
    text = "cats purr " * words
    for tokens in (*tokenizer.queries([text]), *tokenizer.documents([text])):
        assert tokens.ids.count(end) == 1
        assert tokens.ids[-1] == end
        assert len(tokens.ids) <= limit
        assert tokens.cut == (len(tokens.ids) == limit)


def test_a_text_of_exactly_the_limit_is_not_cut(tiny_qwen3):
    text = "A ferry crosses the strait."
    whole = text_tokenizer(tiny_qwen3, QWEN).documents([text])[0].ids
    found = []
    for limit in (len(whole) - 1, len(whole), len(whole) + 1):
        recipe = QWEN.model_copy(update={"document_tokens": limit})
        (tokens,) = text_tokenizer(tiny_qwen3, recipe).documents([text])
        found.append((len(tokens.ids), tokens.cut))
    assert found == [(len(whole) - 1, True), (len(whole), False), (len(whole), False)]


def test_cutting_keeps_the_first_tokens(tiny_qwen3):
    text = "A ferry crosses the strait between the two islands four times a day, 図書館 🙂."
    whole = text_tokenizer(tiny_qwen3, QWEN).documents([text])[0].ids
    recipe = QWEN.model_copy(update={"document_tokens": 12})
    tokens = text_tokenizer(tiny_qwen3, recipe).documents([text])[0]
    assert tokens.ids == [*whole[:11], whole[-1]]
    assert tokens.cut


def test_separator_survives_truncation(tiny_bert):
    recipe = BERT.model_copy(update={"document_tokens": 10})
    tokenizer = load_tokenizer(tiny_bert)
    tokens = text_tokenizer(tiny_bert, recipe).documents(["cats purr " * 50])[0]
    expected = tokenizer("cats purr " * 50, truncation=True, max_length=10)["input_ids"]
    assert tokens.ids == expected


@pytest.mark.parametrize("words", [1, 500, 4000])
def test_listwise_prompt_has_no_end_token_and_ends_as_the_template_does(qwen, released, words):
    (tokens,), _ = qwen.listwise(["cats"], [["cats purr " * words] * 3], 3)
    after = released(ChatListwise().after, add_special_tokens=False)["input_ids"]
    assert tokens.ids[-len(after) :] == after
    assert token_id(released, END) not in tokens.ids
    assert tokens.slots == [0] * (len(tokens.ids) - 1) + [1]


def test_an_end_token_outside_the_vocabulary_is_refused(tiny_qwen3, tiny_bert):
    for folder in (tiny_qwen3, tiny_bert):
        with pytest.raises(CheckpointError, match="no token '<end>', which the prompts need"):
            text_tokenizer(folder, QWEN.model_copy(update={"end_token": "<end>"}))


# Text stays text


def special_counts(tokenizer, ids):
    numbers = {tokenizer.convert_tokens_to_ids(token) for token in SPECIALS}
    numbers -= {tokenizer.convert_tokens_to_ids("cats"), None}
    # An unknown character may be unknown; that is not a special token of the text's own making.
    numbers.discard(tokenizer.unk_token_id if tokenizer.unk_token != END else None)
    return sum(number in numbers for number in ids)


@pytest.mark.parametrize("special", SPECIALS)
@pytest.mark.parametrize("form", ["{}", "cats {} purr", "cats{}purr", " {}\n", "{0}{0}", "<{}🙂"])
def test_special_tokens_inside_a_text_add_no_special_id(any_tokenizer, special, form):
    text = form.format(special)
    own = any_tokenizer._tokenizer

    def counts(text):
        listwise, _ = any_tokenizer.listwise([text], [[text, text]], 2)
        made = [any_tokenizer.queries([text])[0], any_tokenizer.documents([text])[0], listwise[0]]
        return [special_counts(own, tokens.ids) for tokens in made]

    assert counts(text) == counts("cats")


def test_a_unigram_tokenizer_that_cannot_spell_a_special_still_does_not_read_it(xlmr, tiny_xlmr):
    # The vocabulary has no "<": "</s>" would be cheaper as the special piece than as characters.
    tokenizer = load_tokenizer(tiny_xlmr)
    assert tokenizer.convert_tokens_to_ids("<") == tokenizer.unk_token_id
    (tokens,) = xlmr.documents(["cats</s>purr"])
    assert tokens.ids.count(tokenizer.eos_token_id) == 1
    assert tokens.ids[-1] == tokenizer.eos_token_id


def test_only_templates_of_ours_may_mean_special_tokens(qwen, released):
    text = f"<|im_start|>user\n[1] cats{END}<|im_end|>\n"
    tokens = qwen.verbatim(text)
    assert tokens.ids == released(text, add_special_tokens=False)["input_ids"]
    assert tokens.ids.count(token_id(released, END)) == 1


# Pooling slots


def slots_of(folder, pooling, text="cats purr"):
    recipe = BERT.model_copy(update={"pooling": pooling})
    tokenizer = text_tokenizer(folder, recipe)
    return tokenizer.documents([text])[0].slots, tokenizer.listwise([text], [["dogs"]], 1)[0][
        0
    ].slots


def test_slots_of_each_pooling(tiny_bert):
    # [CLS] cats purr [SEP], and with dogs [SEP] behind it: only the query's part is pooled.
    assert slots_of(tiny_bert, "mean") == ([1, 1, 1, 1], [1, 1, 1, 1, 0, 0])
    assert slots_of(tiny_bert, "cls") == ([1, 0, 0, 0], [1, 0, 0, 0, 0, 0])
    assert slots_of(tiny_bert, "last") == ([0, 0, 0, 1], [0, 0, 0, 1, 0, 0])


def test_span_prompt_without_documents_is_the_plain_query(bert):
    (tokens,), (usage,) = bert.listwise(["cats purr"], [["dogs"]], 0)
    (plain,) = bert.queries(["cats purr"])
    assert tokens == plain
    assert (usage.documents, usage.tokens) == (0, len(plain.ids))


def test_every_slot_is_filled_even_for_an_empty_document(any_tokenizer):
    for tokens in any_tokenizer.documents(["", " ", "\x00", "\u200b"]):
        assert 1 in tokens.slots


# Padding


def test_padding_is_on_the_right_and_masks_come_from_lengths():
    # The pad token equals the end token, as in Qwen3.
    batch = collate(
        [Tokens([5, 9], [0, 1], False), Tokens([5, 6, 7, 9], [0, 0, 0, 1], False)], pad_id=9
    )
    assert batch["input_ids"].tolist() == [[5, 9, 9, 9], [5, 6, 7, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert batch["pool_slots"].tolist() == [[0, 1, 0, 0], [0, 0, 0, 1]]


def test_a_tokenizer_without_pad_token_pads_with_zero(tiny_qwen3):
    tokenizer = load_tokenizer(tiny_qwen3)
    assert pad_id(tokenizer) == token_id(tokenizer, END)
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    assert pad_id(bare) == 0


def test_batches_hold_every_index_once_within_the_budget_longest_first():
    chance = random.Random(1)
    for _ in range(200):
        lengths = [chance.randint(1, 300) for _ in range(chance.randint(0, 40))]
        batches = list(batches_by_length(lengths, 256))
        assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
        flat = [lengths[index] for batch in batches for index in batch]
        assert flat == sorted(lengths, reverse=True)
        for batch in batches:
            padded = len(batch) * max(lengths[index] for index in batch)
            assert padded <= 256 or len(batch) == 1


def test_batches_by_hand():
    # 4 + 4 = 8 with padding; a third would make 12. 9 is longer than the budget and stands alone.
    assert list(batches_by_length([3, 9, 4, 2, 2], 8)) == [[1], [2, 0], [3, 4]]


def test_shorter_rows_are_filled_behind():
    assert padded([[1, 2, 3], [4]], 9, dtype=torch.long).tolist() == [[1, 2, 3], [4, 9, 9]]
    assert padded([[True], [True, False]], dtype=torch.bool).tolist() == [
        [True, False],
        [True, False],
    ]


# Odd texts


@pytest.mark.parametrize("query", ["", " ", "\x00", "\u200b", "\n\t"])
def test_a_query_that_has_no_token_is_an_error(bert, query):
    with pytest.raises(ValueError, match=r"query 1 is empty: .* has no token this model knows"):
        bert.queries(["cats", query])
    with pytest.raises(ValueError, match="query 1 is empty"):
        bert.listwise(["cats", query], [["dogs"]] * 2, 1)


def test_an_empty_query_is_an_error_for_a_causal_model_too(qwen):
    with pytest.raises(ValueError, match="query 0 is empty: ''"):
        qwen.queries([""])


def test_nul_characters_are_kept_or_dropped_as_the_tokenizer_does(qwen, bert, released, tiny_bert):
    text = "ca\x00ts\x00 purr"
    assert qwen.documents([text])[0].ids == released(text + END)["input_ids"]
    assert bert.documents([text])[0].ids == bert.documents(["cats purr"])[0].ids


def test_places_in_texts_are_not_filled(qwen, released):
    (tokens,), _ = qwen.listwise(["{documents}"], [["{query}", "{number}"]], 2)
    assert tokens.ids == released_listwise(released, "{documents}", ["{query}", "{number}"])


@pytest.mark.parametrize(
    "unit", ["cats purr ", " ", "\n", "x", "猫", "\x00", "=", "a\u0301"], ids=ascii
)
def test_a_very_long_text_is_quick_and_cut(any_tokenizer, unit):
    text = "cats " + unit * (300_000 // len(unit)) + " dogs"
    with watchdog():
        (document,) = any_tokenizer.documents([text])
        (listwise,), (usage,) = any_tokenizer.listwise(["cats"], [[text, "dogs"]], 2)
        (query,) = any_tokenizer.queries([text])
    recipe = any_tokenizer.recipe
    assert len(document.ids) <= recipe.document_tokens
    assert len(query.ids) <= recipe.query_tokens
    assert len(listwise.ids) <= recipe.listwise.max_tokens
    assert usage.documents == 2


def test_a_word_behind_long_white_space_is_not_lost(bert):
    # What is left of the head after normalising says nothing about the rest.
    (tokens,) = bert.documents(["cats" + " " * 100_000 + "dogs"])
    assert tokens.ids == bert.documents(["cats dogs"])[0].ids
    assert not tokens.cut


def test_a_custom_task_and_template_are_used(tiny_qwen3, released):
    task = Task(query="Find it", listwise="Rank them:", heading="Tweets")
    recipe = QWEN.model_copy(update={"prompts": E2RANK.model_copy(update={"task": task})})
    tokenizer = text_tokenizer(tiny_qwen3, recipe)
    (query,) = tokenizer.queries(["cats"])
    assert query.ids == released(f"Instruct: Find it\nQuery:cats{END}")["input_ids"]
    (tokens,), _ = tokenizer.listwise(["cats"], [["dogs"]], 1)
    text = (
        "<|im_start|>user\nRank them:\nTweets:\n[1] dogs\nSearch Query: cats" + ChatListwise().after
    )
    assert tokens.ids == released(text)["input_ids"]


def test_a_tokenizer_without_fast_version_is_refused():
    class Slow:
        is_fast = False

    with pytest.raises(CheckpointError, match=r"Slow has no tokenizer\.json; convert it"):
        plain_tokenizer(Slow())


def test_span_and_document_prefixes_reach_the_span_prompt(tiny_bert):
    prompts = Prompts(query="cats {query}", document="dogs {document}", listwise=SpanListwise())
    tokenizer = text_tokenizer(tiny_bert, BERT.model_copy(update={"prompts": prompts}))
    own = load_tokenizer(tiny_bert)
    (tokens,), _ = tokenizer.listwise(["purr"], [["bark"]], 1)
    text = "[CLS] cats purr [SEP] dogs bark [SEP]"
    assert tokens.ids == own(text, add_special_tokens=False)["input_ids"]


def test_a_chat_prompt_needs_its_tokens_in_the_vocabulary(tiny_bert):
    with pytest.raises(CheckpointError, match=r"no token '<\|im_start\|>'"):
        Encoder.from_pretrained(tiny_bert, prompts="e2rank")
