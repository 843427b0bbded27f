"""A ResRank's input: the query's tokens, and one place for the vector of each passage."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise, repeat
from typing import NamedTuple

import torch
from torch import Tensor

from e2rank_rag.recipe import ResidualLayout
from e2rank_rag.tokenization import TextTokenizer, Tokens, padded


class ListTokens(NamedTuple):
    """A query's tokens and one place per passage, in the order of the input.

    slots: 1 for the query, 2, 3, ... for the passages, 0 for tokens that are not pooled.
    passages: whether a place belongs to a passage. cut: whether the query was cut.
    """

    ids: list[int]
    positions: list[int]
    slots: list[int]
    passages: list[bool]
    cut: bool


class ListTokenizer:
    """Turns a query and a number of passages into ids. Not thread-safe.

    tokenizer: the reranker's. limit: how many positions the reranker has.
    """

    def __init__(self, tokenizer: TextTokenizer, layout: ResidualLayout, *, limit: int) -> None:
        self.layout = layout
        self._tokenizer = tokenizer
        self._limit = limit

    def lists(self, queries: Sequence[str], counts: Sequence[int]) -> list[ListTokens]:
        """The input of each query with its number of passages.

        Raises ValueError for a count of 0, and for lists that need more positions than there are.
        """
        if counts and min(counts) < 1:
            raise ValueError(f"list {list(counts).index(min(counts))} has no passages")
        closing = self._tokenizer.suffix or (self._tokenizer.pad_id,)
        # Cut like an encoder's query, so that a query of any length leaves room for passages.
        asked = self._tokenizer.queries(queries, most=self._limit - 1 - len(closing))
        rows = []
        for query, count in zip(asked, counts, strict=True):
            row = list_tokens(query, count, self.layout, closing=closing)
            taken = max(row.positions) + 1
            if taken > self._limit:
                raise ValueError(
                    f"{count} passages and {len(row.ids) - count} tokens of text take {taken} "
                    f"positions, the reranker has {self._limit}: rerank fewer, or in windows "
                    "(`ResidualReranker(..., window=Window(...))`)"
                )
            rows.append(row)
        return rows

    def collate(self, batch: Sequence[ListTokens]) -> dict[str, Tensor]:
        """The tensors that `ListBackbone` reads in addition to the vectors, [B, L] each."""
        return collate_lists(batch, pad_id=self._tokenizer.pad_id)


def list_tokens(
    query: Tokens, count: int, layout: ResidualLayout, *, closing: Sequence[int]
) -> ListTokens:
    """The input for a query with `count` passages.

    closing: special tokens after the passages; the last one stands for the query if `query_vector`
        is "end".
    """
    at_end = layout.query_vector == "end"
    last = len(query.ids) - 1
    spans = [0] * last + [1] if at_end else query.slots
    passages = [(0, slot, True) for slot in range(2, count + 2)]
    if layout.query_position == "after":
        text = zip(query.ids, spans, repeat(False))
        tokens = [*passages, *text]
    elif at_end:
        end = zip(closing, [0] * (len(closing) - 1) + [1], repeat(False))
        tokens = [*((id, 0, False) for id in query.ids), *passages, *end]
    else:
        tokens = [*zip(query.ids, spans, repeat(False)), *passages]
    shared = layout.passage_positions == "shared"
    positions = [0]
    for (*_, before), (*_, here) in pairwise(tokens):
        positions.append(positions[-1] + (0 if shared and before and here else 1))
    ids, slots, places = ([token[i] for token in tokens] for i in range(3))
    return ListTokens(ids, positions, slots, [bool(place) for place in places], query.cut)


def collate_lists(batch: Sequence[ListTokens], *, pad_id: int) -> dict[str, Tensor]:
    """Tensors [B, L] of lists with at most K passages: ids, mask, positions, slots, passages.

    A shorter list gets empty places, so that every row has K places and fills every slot. Nothing
    attends to the empty places.
    """
    most = max(sum(row.passages) for row in batch)
    lacking = [list(range(sum(row.passages) + 2, most + 2)) for row in batch]
    rows = list(zip(batch, lacking, strict=True))
    ids = [[*row.ids, *[pad_id] * len(more)] for row, more in rows]
    mask = [[*[1] * len(row.ids), *[0] * len(more)] for row, more in rows]
    positions = [[*row.positions, *[0] * len(more)] for row, more in rows]
    slots = [[*row.slots, *more] for row, more in rows]
    places = [[*row.passages, *[True] * len(more)] for row, more in rows]
    return {
        "input_ids": padded(ids, pad_id, dtype=torch.long),
        "attention_mask": padded(mask, dtype=torch.long),
        "position_ids": padded(positions, dtype=torch.long),
        "pool_slots": padded(slots, dtype=torch.long),
        "passage_places": padded(places, dtype=torch.bool),
    }
