"""Pairs to ids: what is cut, what is special, and what a tokenizer puts between two texts."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from e2rank_rag.pair_tokenization import PairTokenizer, pair_frame
from e2rank_rag.recipe import CrossEncoderRecipe
from e2rank_rag.tokenization import MIN_SHARE, plain_tokenizer
from tests.conftest import bert_tokenizer, t5_tokenizer, xlmr_tokenizer

LONG = "Bread rises because yeast turns sugar into carbon dioxide; salt slows it down. " * 40


def text_pairs(limit=64, **stated):
    tokenizer = t5_tokenizer()
    recipe = CrossEncoderRecipe(structure="encoder-only", input="text", max_tokens=limit, **stated)
    return tokenizer, PairTokenizer(tokenizer, plain_tokenizer(tokenizer), recipe, segments=False)


def segment_pairs(limit=64, tokenizer=None, *, segments=True):
    tokenizer = tokenizer or bert_tokenizer()
    recipe = CrossEncoderRecipe(structure="encoder-only", input="segments", max_tokens=limit)
    plain = plain_tokenizer(tokenizer)
    return tokenizer, PairTokenizer(tokenizer, plain, recipe, segments=segments)


@pytest.mark.parametrize("document", ["dogs bark", "", LONG, "  dogs\n\nbark  "])
def test_a_text_pair_is_one_string_cut_at_its_end(document):
    tokenizer, pairs = text_pairs()
    (pair,) = pairs.pairs("cats purr", [document])
    stock = tokenizer(f"Query: cats purr Document: {document}", truncation=True, max_length=64)
    assert pair.ids == stock["input_ids"]
    assert pair.cut is (document == LONG)


@pytest.mark.parametrize("tokenizer", [bert_tokenizer, xlmr_tokenizer])
@pytest.mark.parametrize("document", ["dogs bark", "", LONG])
def test_a_pair_of_segments_is_what_the_tokenizer_makes_of_it(tokenizer, document):
    tokenizer, pairs = segment_pairs(tokenizer=tokenizer())
    (pair,) = pairs.pairs("cats purr", [document])
    stock = tokenizer(
        ["cats purr"],
        [document],
        truncation="only_second",
        max_length=64,
        return_token_type_ids=True,
    )
    assert [pair.ids] == stock["input_ids"]
    assert [pair.slots] == stock["token_type_ids"]
    assert pair.cut is (document == LONG)


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (text_pairs, "cats </s> dogs <extra_id_10> <pad> purr"),
        (segment_pairs, "cats [SEP] dogs [CLS] [MASK] [PAD] purr"),
    ],
)
def test_special_tokens_in_a_text_stay_text(made, text):
    tokenizer, pairs = made()
    for query, document in (("cats", text), (text, "dogs")):
        (pair,) = pairs.pairs(query, [document])
        (bare,) = pairs.pairs("cats", ["dogs"])
        special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
        assert sum(i in special for i in pair.ids) == sum(i in special for i in bare.ids)


@pytest.mark.parametrize(("made", "special"), [(text_pairs, 1), (segment_pairs, 3)])
def test_a_query_that_leaves_too_little_is_refused_and_never_cut(made, special):
    tokenizer, pairs = made()
    words = "cats"
    while pairs.room(f"{words} cats") >= MIN_SHARE:
        words += " cats"
    (pair,) = pairs.pairs(words, [LONG])
    assert len(pair.ids) == 64
    prompt = f"Query: {words} Document:" if made is text_pairs else words
    taken = len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
    assert pairs.room(words) == 64 - special - taken
    longer = words + " cats" * 9
    tokens = len(tokenizer(longer, add_special_tokens=False)["input_ids"])
    reason = f"the query of {tokens} tokens leaves 0 of 64 for a document, and 8 are the fewest"
    with pytest.raises(ValueError, match=reason):
        pairs.pairs(longer, ["dogs"])


def test_a_caller_may_allow_less():
    _, pairs = segment_pairs(16)
    assert pairs.room("cats " * 12) == 1
    assert len(pairs.pairs("cats " * 12, ["dogs dogs"], least=1)[0].ids) == 16


@pytest.mark.parametrize("made", [text_pairs, segment_pairs])
@pytest.mark.parametrize("query", ["", " \n"])
def test_an_empty_query_is_refused_and_an_empty_document_is_not(made, query):
    _, pairs = made()
    with pytest.raises(ValueError, match=r"a query is empty: .* has no token this model knows"):
        pairs.pairs(query, ["dogs"])
    (pair,) = pairs.pairs("cats", [""])
    assert not pair.cut


def test_slots_pool_the_first_token_or_all():
    for pooling, expected in (("cls", [1, 0, 0]), ("mean", [1, 1, 1])):
        _, pairs = text_pairs(pooling=pooling)
        (pair,) = pairs.pairs("cats", ["dogs"])
        assert pair.slots[:3] == expected
        assert len(pair.slots) == len(pair.ids)


def test_a_batch_holds_what_its_model_reads():
    _, pairs = text_pairs()
    batch = pairs.collate(pairs.pairs("cats", ["dogs", "dogs bark, dogs dig"]))
    assert sorted(batch) == ["attention_mask", "input_ids", "pool_slots"]
    assert batch["attention_mask"].sum(1).tolist() == [
        len(pair.ids) for pair in pairs.pairs("cats", ["dogs", "dogs bark, dogs dig"])
    ]
    for segments, names in ((True, ["token_type_ids"]), (False, [])):
        _, pairs = segment_pairs(segments=segments)
        batch = pairs.collate(pairs.pairs("cats", ["dogs"]))
        assert sorted(batch) == sorted(["attention_mask", "input_ids", *names])
    recipe = CrossEncoderRecipe(structure="encoder-decoder", input="text")
    tokenizer = t5_tokenizer()
    pairs = PairTokenizer(tokenizer, plain_tokenizer(tokenizer), recipe, segments=False)
    assert sorted(pairs.collate(pairs.pairs("cats", ["dogs"]))) == ["attention_mask", "input_ids"]


def test_the_frame_of_a_pair_is_read_off_the_tokenizer(tiny_bert):
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    assert pair_frame(tokenizer) == ([cls], [sep], [sep], ([0], 0, [0], 1, [1]))
    start, end = (xlmr_tokenizer().convert_tokens_to_ids(token) for token in ("<s>", "</s>"))
    assert pair_frame(xlmr_tokenizer())[:3] == ([start], [end, end], [end])
