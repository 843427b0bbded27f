"""Ids equal the released way where the text is clean, and stay harmless where it is not."""

from __future__ import annotations

import random

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from e2rank_rag.errors import CheckpointError
from e2rank_rag.models.encoder import Encoder
from e2rank_rag.models.tokenizer_files import load_tokenizer
from e2rank_rag.prompts import E2RANK, PLAIN, ChatListwise, Prompts, SpanListwise, Task
from e2rank_rag.recipe import ListwiseBudget, Recipe
from e2rank_rag.tokenization import (
    MIN_SHARE,
    TextTokenizer,
    Tokens,
    collate,
    cut_at,
    fair_share,
    pad_id,
    plain_tokenizer,
    token_id,
)
from tests.kit import watchdog

END = "<|endoftext|>"
SPECIALS = [
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<think>",
    "</think>",
    "[SEP]",
    "[CLS]",
    "[PAD]",
    "[UNK]",
    "<s>",
    "</s>",
    "<pad>",
    "<unk>",
]

# What follows a seam of the template decides how the tokenizer splits around it.
SEAMS = [
    "cats purr",
    "2 islands, 17 ferries",
    ": cats",
    "- `x == y`",
    "\ncats\n",
    "\n\n  cats\n\n\n",
    "  cats  ",
    "\tcats\t\r\n",
    "図書館は九時に開きます。",
    "🙂 cats 👩‍👩‍👧",
    "e\u0301te\u0301",
    "don't",
    "?",
]

WORDS = [
    "cats",
    "dogs",
    "ferry",
    "bridge,",
    "1387",
    "図書館",
    "🙂",
    "\n",
    "  ",
    "(x)",
    "e\u0301",
    ":",
]

QWEN = Recipe(
    pooling="last",
    end_token=END,
    prompts=E2RANK,
    query_tokens=512,
    document_tokens=1024,
    listwise=ListwiseBudget(max_tokens=2048),
)
BERT = Recipe(
    pooling="mean",
    prompts=PLAIN,
    query_tokens=128,
    document_tokens=128,
    listwise=ListwiseBudget(depth=8, document_tokens=50, max_tokens=128),
)


def text_tokenizer(folder, recipe):
    tokenizer = load_tokenizer(folder)
    return TextTokenizer(tokenizer, plain_tokenizer(tokenizer), recipe)


def with_budget(recipe, **listwise):
    budget = recipe.listwise.model_copy(update=listwise)
    return recipe.model_copy(update={"listwise": budget})


@pytest.fixture(scope="module")
def released(tiny_qwen3):
    """The tokenizer as the released code opens it: it recognises special tokens."""
    return AutoTokenizer.from_pretrained(tiny_qwen3)


@pytest.fixture(scope="module")
def qwen(tiny_qwen3):
    return text_tokenizer(tiny_qwen3, QWEN)


@pytest.fixture(scope="module")
def bert(tiny_bert):
    return text_tokenizer(tiny_bert, BERT)


@pytest.fixture(scope="module")
def xlmr(tiny_xlmr):
    return text_tokenizer(tiny_xlmr, BERT)


@pytest.fixture(params=["qwen", "bert", "xlmr"])
def any_tokenizer(request):
    return request.getfixturevalue(request.param)


def released_listwise(tokenizer, query, documents):
    """The evaluation prompt as one string, encoded at once."""
    numbered = "\n".join(f"[{i}] {text}" for i, text in enumerate(documents, start=1))
    content = (
        "Given a web search query and some relevant documents, rerank the documents that answer "
        f"the query:\nDocuments:\n{numbered}\nSearch Query: {query}"
    )
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}],
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=False,
    )
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def random_text(random_source, words):
    return " ".join(random_source.choices(WORDS, k=words))


def contains(ids, part):
    return any(ids[i : i + len(part)] == part for i in range(len(ids) - len(part) + 1))


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


# Budgets


def test_fair_share_by_hand():
    assert fair_share([5, 5, 5], 15) == 5
    assert fair_share([5, 5, 5], 100) == 5
    assert fair_share([5, 5, 5], 12) == 4
    # The short one takes 2 of 20; the two long ones share 18.
    assert fair_share([50, 2, 50], 20) == 9
    # 2 + 6 of 20, then 12 for the two long ones.
    assert fair_share([2, 100, 6, 100], 20) == 6
    assert fair_share([3, 100], 20) == 17
    # 7 // 2: a share is whole tokens, one is left over.
    assert fair_share([10, 10], 7) == 3
    assert fair_share([], 100) == 0


def test_fair_share_is_the_largest_that_fits():
    chance = random.Random(3)
    for _ in range(300):
        lengths = [chance.randint(0, 40) for _ in range(chance.randint(1, 8))]
        room = chance.randint(0, 200)
        share = fair_share(lengths, room)
        assert sum(min(n, share) for n in lengths) <= room
        if share < max(lengths):
            assert sum(min(n, share + 1) for n in lengths) > room


def test_long_documents_share_what_short_ones_leave(bert, tiny_bert):
    tokenizer = load_tokenizer(tiny_bert)
    recipe = with_budget(BERT, document_tokens=100, max_tokens=64)
    documents = ["cats " * 60, "dogs", "cats " * 60]
    (tokens,), (usage,) = text_tokenizer(tiny_bert, recipe).listwise(["ferry"], [documents], 3)
    query = len(tokenizer("ferry")["input_ids"])
    # Three closing separators, one token for "dogs", the rest in two halves.
    share = (64 - query - 3 - 1) // 2
    cats, dogs = (tokenizer.convert_tokens_to_ids(word) for word in ("cats", "dogs"))
    sep = tokenizer.sep_token_id
    assert tokens.ids[query:] == [*[cats] * share, sep, dogs, sep, *[cats] * share, sep]
    assert (usage.documents, usage.documents_cut, usage.tokens) == (3, 2, query + 2 * share + 4)


@pytest.mark.parametrize("kind", ["qwen", "bert", "xlmr"])
def test_prompts_never_exceed_their_limit_and_hold_the_whole_query(request, kind, released):
    folder = request.getfixturevalue({"qwen": "tiny_qwen3"}.get(kind, f"tiny_{kind}"))
    own, plain = load_tokenizer(folder), plain_tokenizer(load_tokenizer(folder))
    base = QWEN if kind == "qwen" else BERT
    chance = random.Random(11)
    for _ in range(150):
        limit = chance.randint(200, 500) if kind == "qwen" else chance.randint(40, 128)
        recipe = with_budget(
            base, max_tokens=limit, document_tokens=chance.choice([1, 7, 30, 1000])
        )
        tokenizer = TextTokenizer(own, plain, recipe)
        query = "cats " + random_text(chance, chance.randint(0, 4)) + "dogs"
        documents = [
            random_text(chance, chance.choice([0, 1, 3, 20, 200]))
            for _ in range(chance.randint(0, 12))
        ]
        depth = chance.randint(0, 14)
        (tokens,), (usage,) = tokenizer.listwise([query], [documents], depth)
        assert len(tokens.ids) == len(tokens.slots) == usage.tokens <= limit
        assert usage.documents <= min(depth, len(documents))
        assert usage.documents_cut <= usage.documents
        assert not usage.query_cut
        if kind == "qwen":
            # Joined with the space before it, as in the template.
            assert contains(tokens.ids, plain.encode(" " + query).ids)
        else:
            whole = tokenizer.queries([query])[0].ids
            assert tokens.ids[: len(whole)] == whole


def test_a_tight_budget_shows_fewer_documents_rather_than_crumbs(tiny_bert):
    recipe = with_budget(BERT, document_tokens=50, max_tokens=64)
    documents = ["cats " * 60] * 8
    (tokens,), (usage,) = text_tokenizer(tiny_bert, recipe).listwise(["ferry"], [documents], 8)
    query = len(load_tokenizer(tiny_bert)("ferry")["input_ids"])
    assert usage.documents == (64 - query) // (MIN_SHARE + 1)
    assert usage.documents_cut == usage.documents
    assert len(tokens.ids) <= 64


def test_documents_come_in_their_order_and_only_the_first_are_shown(qwen, released):
    (tokens,), (usage,) = qwen.listwise(["q"], [["cats", "dogs", "ferry"]], 2)
    assert tokens.ids == released_listwise(released, "q", ["cats", "dogs"])
    assert usage.documents == 2


def test_a_document_of_many_byte_characters_stays_within_its_limit(tiny_qwen3):
    (empty,), _ = text_tokenizer(tiny_qwen3, QWEN).listwise(["q"], [[""]], 1)
    for limit in range(1, 14):
        recipe = with_budget(QWEN, document_tokens=limit)
        (tokens,), (usage,) = text_tokenizer(tiny_qwen3, recipe).listwise(["q"], [["🙂🦊" * 5]], 1)
        assert len(tokens.ids) <= len(empty.ids) + limit
        assert usage.documents_cut == 1


def test_a_template_that_repeats_its_document_stays_within_the_limit(tiny_qwen3):
    template = ChatListwise(document="[{number}] {document} / {document}")
    prompts = E2RANK.model_copy(update={"listwise": template})
    recipe = with_budget(QWEN.model_copy(update={"prompts": prompts}), max_tokens=400)
    documents = [["cats " * 300] * 5]
    (tokens,), (usage,) = text_tokenizer(tiny_qwen3, recipe).listwise(["q"], documents, 5)
    assert 300 < len(tokens.ids) == usage.tokens <= 400
    assert usage.documents_cut == usage.documents == 5


def test_cut_at_leaves_out_a_character_of_which_only_a_part_fits():
    # "aé🙂b": one, two and four bytes, and one again.
    offsets = [(0, 1), (1, 2), (1, 2), (2, 3), (2, 3), (2, 3), (2, 3), (3, 4)]
    ends = [cut_at(offsets, limit) for limit in range(9)]
    assert ends == [0, 1, 1, 2, 2, 2, 2, 3, 4]


def test_an_over_long_query_is_cut_and_said_so(tiny_qwen3, tiny_bert):
    for folder, recipe in ((tiny_qwen3, QWEN), (tiny_bert, BERT)):
        tight = with_budget(recipe, max_tokens=120 if recipe is BERT else 400)
        _, (usage,) = text_tokenizer(folder, tight).listwise(["cats " * 900], [["dogs"]], 1)
        assert usage.query_cut
        assert usage.documents == 1
        assert usage.tokens <= tight.listwise.max_tokens


def test_a_budget_below_the_template_is_an_error_with_the_figures(tiny_qwen3):
    tokenizer = text_tokenizer(tiny_qwen3, with_budget(QWEN, max_tokens=32))
    with pytest.raises(ValueError, match=r"takes \d+ tokens without any document, the limit is 32"):
        tokenizer.listwise(["cats"], [["dogs"]], 1)


@pytest.mark.parametrize("field", ["query_tokens", "document_tokens"])
def test_limits_that_leave_no_room_for_text_are_refused(tiny_bert, field):
    prompts = Prompts(
        query="query: cats cats cats cats {query}", document="dogs " * 9 + "{document}"
    )
    recipe = BERT.model_copy(update={"prompts": prompts, field: 8})
    with pytest.raises(ValueError, match=f"{field} is 8, but prompt and special tokens alone take"):
        text_tokenizer(tiny_bert, recipe)


def test_a_model_without_listwise_prompt_says_what_to_state(tiny_bert):
    recipe = BERT.model_copy(update={"prompts": Prompts(listwise=None)})
    with pytest.raises(ValueError, match="no listwise prompt; open it with prompts="):
        text_tokenizer(tiny_bert, recipe).listwise(["cats"], [["dogs"]], 1)


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
def test_a_megabyte_is_quick_and_cut(any_tokenizer, unit):
    text = "cats " + unit * (1_000_000 // len(unit)) + " dogs"
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
