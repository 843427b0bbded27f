"""Turns text into `(input_ids, attention_mask, pool_slots)`, in training and in serving.

`pool_slots` holds for each token the number of the vector that it is pooled into, 0 for none. Last
token, CLS, mean of all tokens and query span only differ in how they fill the slots.

Text is encoded by a tokenizer that recognises neither special nor added tokens. Limits are applied
by slicing: a tokenizer's truncation is state that threads share. Special ids are added by hand.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from tokenizers import Encoding, Tokenizer
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from e2rank_rag.errors import CheckpointError
from e2rank_rag.prompts import ChatListwise
from e2rank_rag.recipe import Recipe
from e2rank_rag.types import PromptUsage

CHARACTERS_PER_TOKEN = 32
"""Texts with more characters than this per allowed token are cut before tokenising."""

MIN_SHARE = 8
"""With fewer tokens per document than this, a prompt shows fewer documents instead."""


class Tokens(NamedTuple):
    """One tokenised text; `slots` is as long as `ids`. cut: whether text is missing."""

    ids: list[int]
    slots: list[int]
    cut: bool


def plain_tokenizer(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """A copy that neither recognises nor adds special and added tokens, and truncates nothing."""
    if not tokenizer.is_fast:
        raise CheckpointError(
            f"{type(tokenizer).__name__} has no tokenizer.json; convert it to a fast tokenizer"
        )
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    special = {token["content"] for token in state["added_tokens"]}
    state.update(added_tokens=[], post_processor=None, truncation=None, padding=None)
    if state["model"]["type"] == "Unigram":
        # A Unigram model lists its special tokens as pieces with the best score, so text would
        # match them. They are renamed, because a bad score would change the penalty for unknown
        # characters, which is the worst score. No text contains the new names, because the
        # pre-tokeniser replaces all spaces.
        state["model"]["vocab"] = [
            (f" special {index} ", score) if piece in special else (piece, score)
            for index, (piece, score) in enumerate(state["model"]["vocab"])
        ]
    return Tokenizer.from_str(json.dumps(state))


class TextTokenizer:
    """Turns queries, documents and listwise prompts into ids, by a recipe. Not thread-safe."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, plain: Tokenizer, recipe: Recipe
    ) -> None:
        self.recipe = recipe
        self._tokenizer = tokenizer
        self._plain = plain
        self._prefix, self.suffix = special_frame(tokenizer, recipe.end_token)
        self._chat: tuple[list[int], list[int]] = ([], [])
        if isinstance(recipe.prompts.listwise, ChatListwise):
            template = recipe.prompts.listwise
            for token in re.findall(r"<[^<>\s]+>", template.before + template.after):
                token_id(tokenizer, token)
            self._chat = (self._specials(template.before), self._specials(template.after))
        limits = {
            "query_tokens": (recipe.query_tokens, recipe.prompts.query_text("")),
            "document_tokens": (recipe.document_tokens, recipe.prompts.document_text("")),
        }
        for name, (limit, prompt) in limits.items():
            taken = self.overhead + len(plain.encode(prompt, add_special_tokens=False).ids)
            if limit <= taken:
                raise ValueError(
                    f"{name} is {limit}, but prompt and special tokens alone take {taken}; raise it"
                )

    @property
    def special_ids(self) -> list[int]:
        """The special ids around a text and around a prompt."""
        return [*self._prefix, *self.suffix, *self._chat[0], *self._chat[1]]

    @property
    def pad_id(self) -> int:
        """The id that pads shorter texts of a batch."""
        return pad_id(self._tokenizer)

    @property
    def overhead(self) -> int:
        """The number of special tokens around a plain text."""
        return len(self._prefix) + len(self.suffix)

    def queries(self, queries: Sequence[str], *, most: int | None = None) -> list[Tokens]:
        """Plain queries; ValueError for a query without a token.

        most: a limit in tokens that is lower than the recipe's.
        """
        texts = [self.recipe.prompts.query_text(query) for query in queries]
        self._refuse_empty(queries)
        limit = self.recipe.query_tokens
        return self._framed(texts, limit if most is None else min(limit, most))

    def documents(self, documents: Sequence[str]) -> list[Tokens]:
        """Documents, cut at the recipe's limit."""
        texts = [self.recipe.prompts.document_text(document) for document in documents]
        return self._framed(texts, self.recipe.document_tokens)

    def listwise(
        self, queries: Sequence[str], candidates: Sequence[Sequence[str]], depth: int
    ) -> tuple[list[Tokens], list[PromptUsage]]:
        """One prompt per query with its first `depth` candidates, and what each prompt holds."""
        template = self.recipe.prompts.listwise
        if template is None:
            raise ValueError(
                "this model has no listwise prompt; open it with prompts=Prompts(..., "
                "listwise=ChatListwise() or SpanListwise())"
            )
        self._refuse_empty(queries)
        tokens: list[Tokens] = []
        usage: list[PromptUsage] = []
        for query, documents in zip(queries, candidates, strict=True):
            shown = list(documents[:depth])
            if isinstance(template, ChatListwise):
                prompt, used = self._chat_prompt(template, query, shown)
            else:
                prompt, used = self._span_prompt(query, shown)
            tokens.append(prompt)
            usage.append(used)
        return tokens, usage

    def verbatim(self, text: str) -> Tokens:
        """A finished prompt in which special tokens are recognised; not for users' text."""
        ids = self._specials(text)
        return Tokens(ids, self._slots(len(ids)), cut=False)

    def collate(self, batch: Sequence[Tokens]) -> dict[str, Tensor]:
        """The arguments of `Backbone`: input_ids, attention_mask and pool_slots, int64 [B, L]."""
        return collate(batch, pad_id=self.pad_id)

    def _specials(self, text: str) -> list[int]:
        """Ids of a template's text, in which special tokens are recognised."""
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _refuse_empty(self, queries: Sequence[str]) -> None:
        for index, ids in enumerate(self._encode(queries, self.recipe.query_tokens)):
            if not ids:
                raise ValueError(
                    f"query {index} is empty: {queries[index]!r} has no token this model knows"
                )

    def _framed(self, texts: Sequence[str], limit: int) -> list[Tokens]:
        room = limit - self.overhead
        tokens = []
        for ids in self._encode(texts, room):
            framed = [*self._prefix, *ids[:room], *self.suffix]
            tokens.append(Tokens(framed, self._slots(len(framed)), cut=len(ids) > room))
        return tokens

    def _slots(self, length: int, span: int | None = None) -> list[int]:
        """Which tokens are pooled; with a span, only among the first `span` tokens."""
        end = length if span is None else span
        if self.recipe.pooling == "mean":
            return [1] * end + [0] * (length - end)
        slots = [0] * length
        slots[0 if self.recipe.pooling == "cls" else end - 1] = 1
        return slots

    def _encode(self, texts: Sequence[str], limit: int) -> list[list[int]]:
        return first_ids(self._plain, texts, limit)

    def _span_prompt(self, query: str, documents: Sequence[str]) -> tuple[Tokens, PromptUsage]:
        """`prefix query suffix document suffix ...`, with the tokenizer's special ids."""
        budget = self.recipe.listwise
        limit = min(
            self.recipe.query_tokens, budget.max_tokens // 2 if documents else budget.max_tokens
        )
        (question,) = self._framed([self.recipe.prompts.query_text(query)], limit)
        texts = [self.recipe.prompts.document_text(document) for document in documents]
        rows = self._encode(texts, budget.document_tokens)
        room = budget.max_tokens - len(question.ids)
        closing = len(self.suffix)
        while rows and room - closing * len(rows) < MIN_SHARE * len(rows):
            rows.pop()
        room -= closing * len(rows)
        share = min(budget.document_tokens, fair_share([len(row) for row in rows], room))
        ids = list(question.ids)
        for row in rows:
            ids += row[:share]
            ids += self.suffix
        usage = PromptUsage(
            documents=len(rows),
            documents_cut=sum(len(row) > share for row in rows),
            tokens=len(ids),
            query_cut=question.cut,
        )
        slots = self._slots(len(ids), span=len(question.ids))
        return Tokens(ids, slots, cut=question.cut), usage

    def _chat_prompt(
        self, template: ChatListwise, query: str, documents: Sequence[str]
    ) -> tuple[Tokens, PromptUsage]:
        """The prompt of a chat template; only its documents are shortened, each to its share.

        The user turn is encoded as one string, because tokens can span the border of two texts.
        """
        budget, task = self.recipe.listwise, self.recipe.prompts.task
        before, after = self._chat
        frame = len(self._prefix) + len(before) + len(after)
        limit = min(self.recipe.query_tokens, budget.max_tokens // 2)
        (query,), (query_cut,) = self._cut_to([query], limit)

        def turn_ids(shown: Sequence[str]) -> list[int]:
            turn = template.user_turn(task, query, shown)
            return self._plain.encode(turn, add_special_tokens=False).ids

        def room_for(count: int) -> int:
            # A document can take one more token on each side where it meets another text.
            return budget.max_tokens - frame - len(turn_ids([""] * count)) - 2 * count

        while documents and room_for(len(documents)) < MIN_SHARE * len(documents):
            documents = documents[:-1]
        room = room_for(len(documents))
        if room < 0:
            raise ValueError(
                f"a listwise prompt takes {budget.max_tokens - room} tokens without any document, "
                f"the limit is {budget.max_tokens}; raise listwise.max_tokens or shorten the query"
            )
        lengths = [len(row) for row in self._encode(documents, budget.document_tokens)]
        share = min(budget.document_tokens, fair_share(lengths, room))
        while True:
            shown, cut = self._cut_to(documents, share)
            ids = [*self._prefix, *before, *turn_ids(shown), *after]
            excess = len(ids) - budget.max_tokens
            if excess <= 0:
                break
            # Borders, or a template that repeats a text, took more than the reserved room.
            share -= 1 + excess // (4 * len(shown))
        usage = PromptUsage(
            documents=len(shown), documents_cut=sum(cut), tokens=len(ids), query_cut=query_cut
        )
        return Tokens(ids, self._slots(len(ids)), cut=query_cut), usage

    def _cut_to(self, texts: Sequence[str], limit: int) -> tuple[list[str], list[bool]]:
        """Each text, cut between characters to at most `limit` tokens, and whether it was cut."""
        heads = [text[: limit * CHARACTERS_PER_TOKEN] for text in texts]
        encodings: list[Encoding] = self._plain.encode_batch(heads, add_special_tokens=False)
        cut_texts, cuts = [], []
        for text, head, encoding in zip(texts, heads, encodings, strict=True):
            if len(head) < len(text) and len(encoding.ids) <= limit:
                encoding = self._plain.encode(text, add_special_tokens=False)
            cut = len(encoding.ids) > limit
            cut_texts.append(text[: cut_at(encoding.offsets, limit)] if cut else text)
            cuts.append(cut)
        return cut_texts, cuts


def first_ids(plain: Tokenizer, texts: Sequence[str], limit: int) -> list[list[int]]:
    """The ids of each text, at least `limit + 1` of them if the text has so many."""
    heads = [text[: limit * CHARACTERS_PER_TOKEN] for text in texts]
    rows = [each.ids for each in plain.encode_batch_fast(heads, add_special_tokens=False)]
    for index, (text, head) in enumerate(zip(texts, heads, strict=True)):
        if len(head) < len(text) and len(rows[index]) <= limit:
            rows[index] = plain.encode(text, add_special_tokens=False).ids
    return rows


def fair_share(lengths: Sequence[int], room: int) -> int:
    """The largest limit per text with which all texts fit; short texts leave room to long ones."""
    for index, length in enumerate(sorted(lengths)):
        share = room // (len(lengths) - index)
        if length > share:
            return share
        room -= length
    return max(lengths, default=0)


def cut_at(offsets: Sequence[tuple[int, int]], limit: int) -> int:
    """How many characters the first `limit` of these tokens cover.

    A byte-level tokenizer may need several tokens for a character. A character that fits only in
    part is left out.
    """
    while 0 < limit < len(offsets) and offsets[limit][0] < offsets[limit - 1][1]:
        limit -= 1
    return offsets[limit - 1][1] if limit > 0 else 0


def special_frame(
    tokenizer: PreTrainedTokenizerBase, end_token: str | None
) -> tuple[list[int], list[int]]:
    """The special ids before and after a text; an end token replaces those after it."""
    framed = tokenizer("a")["input_ids"]
    (text,) = text_places(tokenizer, framed, count=1)
    suffix = framed[text.stop :] if end_token is None else [token_id(tokenizer, end_token)]
    return framed[: text.start], suffix


def text_places(
    tokenizer: PreTrainedTokenizerBase, framed: list[int], *, count: int
) -> list[slice]:
    """Where the ids of the text "a" stand; CheckpointError unless they do `count` times."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    starts = [i for i in range(len(framed)) if framed[i : i + len(bare)] == bare]
    if not bare or len(starts) != count:
        raise CheckpointError(
            f"{type(tokenizer).__name__} does not put its special tokens around and between "
            f"{count} texts: 'a' alone has the ids {bare[:9]}, with them {framed[:9]}"
        )
    return [slice(start, start + len(bare)) for start in starts]


_NO_PROMPT = ", which the prompts need: state prompts that suit this model"


def token_id(tokenizer: PreTrainedTokenizerBase, token: str, lacking: str = _NO_PROMPT) -> int:
    """The id of a token; CheckpointError if it is not in the vocabulary.

    lacking: the end of the error, which says what needs the token.
    """
    number = tokenizer.convert_tokens_to_ids(token)
    unknown = number == tokenizer.unk_token_id and token != tokenizer.unk_token
    if not isinstance(number, int) or unknown:
        raise CheckpointError(f"the tokenizer has no token {token!r}{lacking}")
    return number


def padded(rows: Sequence[Sequence[float]], fill: float = 0, *, dtype: torch.dtype) -> Tensor:
    """Rows of different lengths as one tensor [B, L], with `fill` behind the shorter ones."""
    tensors = [torch.tensor(row, dtype=dtype) for row in rows]
    return pad_sequence(tensors, batch_first=True, padding_value=fill)


def batches_by_length(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Indices in batches of similar length, each of at most `budget` tokens with padding.

    The longest come first, so too little memory shows at once, and a progress bar's estimate is not
    too low.
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batch and lengths[batch[0]] * (len(batch) + 1) > budget:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def checked_texts(texts: Sequence[str], kind: str) -> list[str]:
    """The texts as a list; TypeError or ValueError for one that is not a string of characters.

    kind: the word for a text in error messages.
    """
    if isinstance(texts, str):
        raise TypeError(f"expected a list of texts, got one string; write [{texts[:40]!r}]")
    texts = list(texts)
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"{kind} {index} is a {type(text).__name__}, not a string")
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise ValueError(
                    f"{kind} {index} has a lone surrogate at character {error.start}, which is not "
                    'UTF-8; clean it with text.encode("utf-8", "replace").decode()'
                ) from None
    return texts


def collate(batch: Sequence[Tokens], *, pad_id: int) -> dict[str, Tensor]:
    """input_ids, attention_mask and pool_slots of a batch, each int64 [B, L], padded on the right.

    The mask comes from the lengths, because Qwen3's pad token is its end token.
    """
    return {
        "input_ids": padded([tokens.ids for tokens in batch], pad_id, dtype=torch.long),
        "attention_mask": padded([[1] * len(tokens.ids) for tokens in batch], dtype=torch.long),
        "pool_slots": padded([tokens.slots for tokens in batch], dtype=torch.long),
    }


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The pad token's id, or 0: any id will do, because masks come from lengths."""
    return 0 if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)
