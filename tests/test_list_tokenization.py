"""Where the query and the passages stand in the input of a ResRank."""

from __future__ import annotations

import pytest

from e2rank_rag.list_tokenization import ListTokenizer, collate_lists, list_tokens
from e2rank_rag.recipe import ResidualLayout
from e2rank_rag.tokenization import Tokens

QUERY = Tokens(ids=[2, 11, 12, 3], slots=[1, 1, 1, 1], cut=False)


@pytest.mark.parametrize(
    ("layout", "ids", "positions", "slots"),
    [
        ({}, [2, 11, 12, 3, 0, 0], [0, 1, 2, 3, 4, 4], [1, 1, 1, 1, 2, 3]),
        (
            {"passage_positions": "ranked"},
            [2, 11, 12, 3, 0, 0],
            [0, 1, 2, 3, 4, 5],
            [1, 1, 1, 1, 2, 3],
        ),
        (
            {"query_vector": "end"},
            [2, 11, 12, 3, 0, 0, 3],
            [0, 1, 2, 3, 4, 4, 5],
            [0, 0, 0, 0, 2, 3, 1],
        ),
        (
            {"query_position": "after"},
            [0, 0, 2, 11, 12, 3],
            [0, 0, 1, 2, 3, 4],
            [2, 3, 1, 1, 1, 1],
        ),
        (
            {"query_position": "after", "query_vector": "end", "passage_positions": "ranked"},
            [0, 0, 2, 11, 12, 3],
            [0, 1, 2, 3, 4, 5],
            [2, 3, 0, 0, 0, 1],
        ),
    ],
)
def test_a_layout_says_where_query_and_passages_stand(layout, ids, positions, slots):
    tokens = list_tokens(QUERY, 2, ResidualLayout(**layout), closing=(3,))
    assert tokens.ids == ids
    assert tokens.positions == positions
    assert tokens.slots == slots
    assert [slot > 1 for slot in slots] == tokens.passages


def test_a_shorter_list_gets_places_that_nothing_attends_to():
    layout = ResidualLayout()
    batch = collate_lists(
        [list_tokens(QUERY, count, layout, closing=(3,)) for count in (3, 1)], pad_id=9
    )
    assert batch["input_ids"].tolist() == [[2, 11, 12, 3, 0, 0, 0], [2, 11, 12, 3, 0, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1] * 7, [1] * 5 + [0] * 2]
    assert batch["pool_slots"].tolist() == [[1, 1, 1, 1, 2, 3, 4]] * 2
    assert batch["passage_places"].sum(1).tolist() == [3, 3]


def test_a_query_is_cut_so_that_it_leaves_a_position_for_passages(bert):
    tokenizer = ListTokenizer(bert.tokenizer, ResidualLayout(), limit=16)
    (row,) = tokenizer.lists(["cats purr " * 50], [40])
    assert row.cut
    assert max(row.positions) < 16
    assert sum(row.passages) == 40


def test_lists_that_do_not_fit_are_refused_with_the_figures(bert):
    ranked = ResidualLayout(passage_positions="ranked")
    tokenizer = ListTokenizer(bert.tokenizer, ranked, limit=16)
    (text,) = bert.tokenizer.queries(["cats purr"])
    taken = len(text.ids) + 14
    with pytest.raises(ValueError, match=rf"14 passages .* {taken} positions, .* has 16"):
        tokenizer.lists(["cats purr"], [14])
    with pytest.raises(ValueError, match="list 1 has no passages"):
        tokenizer.lists(["cats", "dogs"], [2, 0])
