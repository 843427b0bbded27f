"""From examples to batches of pairs: which positive, which hard negatives, what is no negative."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from e2rank_rag.prompts import ChatListwise, resolve_task
from e2rank_rag.recipe import Recipe
from e2rank_rag.tokenization import TextTokenizer, Tokens, collate
from e2rank_rag.training.relevance import (
    best_place,
    is_order,
    other_places,
    relevant_places,
    relevant_texts,
    words,
)
from e2rank_rag.types import RankingExample


@dataclass(frozen=True, slots=True)
class DrawnPair:
    """One query of a batch with a positive and hard negatives.

    relevant: all texts that are known to answer the query, wherever the data say so.
    """

    query: str
    positive: str
    negatives: tuple[str, ...]
    relevant: frozenset[str]
    task: str | None


class PairDataset(Dataset[DrawnPair]):
    """The pairs of all sources, one after the other, drawn anew in each epoch.

    The positive is drawn among the documents with the highest label, unless one is known to be it;
    the negatives among those with a label of 0 or below, of a teacher's order among all that are
    not known to be relevant. The query itself is none.

    negatives: how many at most; fewer where no example has so many.
    """

    def __init__(
        self, sources: Sequence[Sequence[RankingExample]], *, negatives: int, seed: int
    ) -> None:
        self.examples = [example for source in sources for example in source]
        self.seed = seed
        self.epoch = 0
        self._repeated = _relevant_of_repeated(self.examples)
        most = max(len(_others(each, self._relevant(each))) for each in self.examples)
        self.negatives = min(negatives, most)

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> DrawnPair:
        example = self.examples[index]
        draw = random.Random(f"{self.seed} {self.epoch} {index}")
        relevant = self._relevant(example)
        others = _others(example, relevant)
        return DrawnPair(
            query=example.query,
            positive=draw.choice(_positives(example)),
            negatives=tuple(draw.sample(others, min(self.negatives, len(others)))),
            relevant=relevant,
            task=example.task,
        )

    def _relevant(self, example: RankingExample) -> frozenset[str]:
        return self._repeated.get(example.query) or _relevant(example)


class PairCollator:
    """Pairs to tensors: `Q` queries, each with a positive and `negatives` others, so `N` documents.

    queries, documents: chunks of tokens, see `tokenization.collate`, of at most `chunk_size` texts
        (None: one chunk); documents by length, so that chunks hold little padding.
    positives: int [Q], in 0..N.
    document_keys: int [N], equal where texts are equal. relevant_keys: int [Q, R]: keys of the
        documents that are no negatives for a query, those of the query itself and of the empty text
        among them, which pads both where a query has fewer negatives or relevant texts than others.

    tokenizers: for each task of the data; all queries of a batch must have one.
    """

    def __init__(
        self,
        tokenizers: Mapping[str | None, TextTokenizer],
        *,
        pad_id: int,
        negatives: int,
        chunk_size: int | None,
    ) -> None:
        self.tokenizers = tokenizers
        self.pad_id = pad_id
        self.negatives = negatives
        self.chunk_size = chunk_size

    def __call__(self, pairs: Sequence[DrawnPair]) -> dict[str, Any]:
        tokenizer = self.tokenizers[pairs[0].task]
        texts = [
            text
            for pair in pairs
            for text in _padded((pair.positive, *pair.negatives), 1 + self.negatives, "")
        ]
        tokens = tokenizer.documents(texts)
        # Longest first: a batch that does not fit into memory fails at its first chunk.
        order = sorted(range(len(texts)), key=lambda place: -len(tokens[place].ids))
        places = {place: row for row, place in enumerate(order)}
        return {
            "queries": self._chunks(tokenizer.queries([pair.query for pair in pairs])),
            "documents": self._chunks([tokens[place] for place in order]),
            "positives": torch.tensor(
                [places[i * (1 + self.negatives)] for i in range(len(pairs))]
            ),
            "document_keys": torch.tensor([text_key(texts[place]) for place in order]),
            "relevant_keys": _relevant_keys(pairs),
        }

    def _chunks(self, tokens: Sequence[Tokens]) -> list[dict[str, Tensor]]:
        size = self.chunk_size or len(tokens)
        return [
            collate(tokens[start : start + size], pad_id=self.pad_id)
            for start in range(0, len(tokens), size)
        ]


def counted_documents(document_keys: Tensor, relevant_keys: Tensor) -> Tensor:
    """bool [Q, N]: which documents are negatives of a query, by their texts."""
    counted = torch.ones(
        len(relevant_keys), len(document_keys), dtype=torch.bool, device=document_keys.device
    )
    for keys in relevant_keys.T:  # [Q, N, R] at once would be large
        counted &= document_keys[None, :] != keys[:, None]
    return counted


def task_recipe(recipe: Recipe, task: str | None) -> Recipe:
    """The recipe with the instructions of a task: a name that `prompts.resolve_task` knows, or a
    sentence, which is the instruction of plain queries alone.

    Models whose prompts have no place for an instruction keep theirs. ValueError for a single word
    that is no name.
    """
    prompts = recipe.prompts
    placed = "{task}" in prompts.query or isinstance(prompts.listwise, ChatListwise)
    if task is None or not placed:
        return recipe
    stated = prompts.task.model_copy(update={"query": task}) if " " in task else resolve_task(task)
    return recipe.model_copy(update={"prompts": prompts.model_copy(update={"task": stated})})


def text_key(text: str) -> int:
    """64 bits that are the same in every process, however white space is written."""
    digest = hashlib.blake2b(words(text).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def _relevant_keys(pairs: Sequence[DrawnPair]) -> Tensor:
    rows = [["", pair.query, *sorted(pair.relevant)] for pair in pairs]
    longest = max(len(row) for row in rows)
    return torch.tensor([[text_key(text) for text in _padded(row, longest, "")] for row in rows])


def _padded(texts: Sequence[str], count: int, padding: str) -> list[str]:
    return [*texts, *[padding] * (count - len(texts))]


def _positives(example: RankingExample) -> list[str]:
    if example.positive is not None:
        return [example.documents[example.positive]]
    if is_order(example):
        return [example.documents[best_place(example)]]
    best = max(example.labels)
    return [t for t, label in zip(example.documents, example.labels, strict=True) if label == best]


def _others(example: RankingExample, relevant: frozenset[str]) -> list[str]:
    """Hard negatives: each text once."""
    places = other_places(example, relevant_places(example, best=example.positive is None))
    texts = dict.fromkeys(example.documents[place] for place in places)
    return [text for text in texts if text not in relevant]


def _relevant(example: RankingExample) -> frozenset[str]:
    return relevant_texts(example, best=example.positive is None)


def _relevant_of_repeated(examples: Sequence[RankingExample]) -> dict[str, frozenset[str]]:
    """Of queries that stand in several examples: what is relevant in any of them."""
    counts = Counter(example.query for example in examples)
    found: dict[str, set[str]] = {}
    for example in examples:
        if counts[example.query] > 1:
            found.setdefault(example.query, set()).update(_relevant(example))
    return {query: frozenset(texts) for query, texts in found.items()}
