"""Prompts stay within their budgets, and say what they left out."""

from __future__ import annotations

import random

import pytest

from e2rank_rag.models.tokenizer_files import load_tokenizer
from e2rank_rag.prompts import E2RANK, ChatListwise, Prompts
from e2rank_rag.tokenization import (
    MIN_SHARE,
    TextTokenizer,
    cut_at,
    fair_share,
    plain_tokenizer,
)
from tests.tokenizing import (
    BERT,
    QWEN,
    contains,
    random_text,
    released_listwise,
    text_tokenizer,
    with_budget,
)


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
