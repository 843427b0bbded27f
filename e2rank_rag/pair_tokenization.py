"""Turns a query and a document into a cross-encoder's ids, in training and in serving.

Only documents are cut. As in `tokenization`, special tokens in a text are plain text, limits are
applied by slicing, and special ids are added by hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from e2rank_rag.recipe import CrossEncoderRecipe
from e2rank_rag.tokenization import (
    MIN_SHARE,
    Tokens,
    collate,
    first_ids,
    pad_id,
    special_frame,
    text_places,
)


class PairFrame(NamedTuple):
    """Special ids before the query, between query and document, and after; and the segments."""

    before: list[int]
    between: list[int]
    after: list[int]
    segments: tuple[list[int], int, list[int], int, list[int]]
    """Segment numbers: before, each query token, between, each document token, after."""


class PairTokenizer:
    """Turns pairs into ids, by a recipe. Not thread-safe.

    segments: whether the model has segment embeddings. Without segments, a BERT would read the
        document as a part of the query, and no error would show it.
    padding: the id that the model ignores; a causal classifier takes its score from the last token
        before the padding. None: the tokenizer's pad token.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        plain: Tokenizer,
        recipe: CrossEncoderRecipe,
        *,
        segments: bool,
        padding: int | None = None,
    ) -> None:
        self.recipe = recipe
        self._plain = plain
        self._segments = segments
        self._pad_id = pad_id(tokenizer) if padding is None else padding
        if recipe.input == "segments":
            self._frame = pair_frame(tokenizer)
        else:
            before, after = special_frame(tokenizer, None)
            self._frame = PairFrame(before, [], after, ([], 0, [], 0, []))

    def room(self, query: str) -> int:
        """How many tokens a query leaves for a document; negative if the query itself is too long.

        ValueError for a query without a token.
        """
        limit = self.recipe.max_tokens
        (ids,) = first_ids(self._plain, [query], limit)
        if not ids:
            raise ValueError(f"a query is empty: {query!r} has no token this model knows")
        if self.recipe.input == "text":
            # The space before the document becomes a part of its first token.
            (ids,) = first_ids(self._plain, [self.recipe.prompt.text(query, "").rstrip()], limit)
        return limit - self._special - len(ids)

    def pairs(
        self, query: str, documents: Sequence[str], *, least: int = MIN_SHARE
    ) -> list[Tokens]:
        """The pairs of one query with each of these documents; documents of long pairs are cut.

        `slots` are pool slots for an encoder-only T5, and segments for models that read those.

        Raises ValueError for an empty query, and for a query that leaves fewer than `least` tokens
        for a document.
        """
        limit, room = self.recipe.max_tokens, self.room(query)
        if room < least:
            raise ValueError(
                f"the query of {self._long(query)} tokens leaves {max(room, 0)} of {limit} for a "
                f"document, and {least} are the fewest: shorten it, or raise max_length: "
                f"{query[:60]!r}"
            )
        before, between, after, segments = self._frame
        if self.recipe.input == "text":
            head, room = before, limit - self._special
            texts = [self.recipe.prompt.text(query, document) for document in documents]
        else:
            (asked,) = first_ids(self._plain, [query], limit)
            head, texts = [*before, *asked, *between], list(documents)
            first, of_query, second, of_document, last = segments
            marks = [*first, *[of_query] * len(asked), *second]
        rows = []
        for ids in first_ids(self._plain, texts, room):
            framed = [*head, *ids[:room], *after]
            if self.recipe.input == "text":
                slots = [1] + [int(self.recipe.pooling == "mean")] * (len(framed) - 1)
            else:
                slots = [*marks, *[of_document] * min(len(ids), room), *last]
            rows.append(Tokens(framed, slots, cut=len(ids) > room))
        return rows

    def collate(self, batch: Sequence[Tokens]) -> dict[str, Tensor]:
        """The arguments of the model, int64 [B, L] each, padded on the right."""
        tensors = collate(batch, pad_id=self._pad_id)
        slots = tensors.pop("pool_slots")
        if self.recipe.pooling is not None:
            tensors["pool_slots"] = slots
        elif self.recipe.input == "segments" and self._segments:
            tensors["token_type_ids"] = slots
        return tensors

    @property
    def _special(self) -> int:
        return len(self._frame.before) + len(self._frame.between) + len(self._frame.after)

    def _long(self, query: str) -> int:
        return len(self._plain.encode(query, add_special_tokens=False).ids)


def pair_frame(tokenizer: PreTrainedTokenizerBase) -> PairFrame:
    """The special tokens that this tokenizer puts around and between the texts of a pair.

    Raises CheckpointError for a tokenizer that does not join two texts by special tokens.
    """
    framed = tokenizer("a", "a", return_token_type_ids=True)
    ids, segments = framed["input_ids"], framed["token_type_ids"]
    first, second = text_places(tokenizer, ids, count=2)
    spans = slice(0, first.start), slice(first.stop, second.start), slice(second.stop, len(ids))
    before, between, after = (ids[span] for span in spans)
    marks = [segments[span] for span in spans]
    numbers = (marks[0], segments[first.start], marks[1], segments[second.start], marks[2])
    return PairFrame(before, between, after, numbers)
