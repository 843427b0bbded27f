"""From examples to batches of lists: which documents, which prompts, which negatives count.

Every draw depends on the seed, the epoch and the example alone, so a run that was stopped goes on
with the batches that it would have had.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from e2rank_rag.feedback import Feedback, order
from e2rank_rag.tokenization import TextTokenizer, collate
from e2rank_rag.training.config import ListwiseConfig
from e2rank_rag.training.relevance import (
    best_place,
    is_order,
    other_places,
    relevant_places,
    relevant_texts,
    words,
)
from e2rank_rag.training.vectors import TextVectors
from e2rank_rag.types import Embeddings, RankingExample

SourceExamples = Sequence[Sequence[RankingExample]]
"""The examples of each source."""

TOLD = 5
"""Warnings of one kind."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ScoredList:
    """One list of a batch.

    documents: texts that are scored; labels: theirs; positive: the place of the InfoNCE positive.
    relevant: texts that are no negatives for this query, beside the query itself.
    task: see `pairs.task_recipe`; all lists of a batch have one.
    """

    query: str
    documents: tuple[str, ...]
    labels: tuple[float, ...]
    positive: int
    relevant: frozenset[str]
    task: str | None


@dataclass(frozen=True, slots=True)
class DrawnList(ScoredList):
    """One list with its prompt.

    shown: texts for the prompt, in its order, more than it may take.
    feedback: float32 [dim], what the candidates' vectors add to the query's; None: nothing.
    """

    shown: tuple[str, ...]
    depth: int
    feedback: Embeddings | None = None


def groups_of(train: SourceExamples) -> list[list[RankingExample]]:
    """The examples of each source that the data or the configuration names, by their task: what
    batches are of."""
    groups: dict[tuple[int, str | None, str | None], list[RankingExample]] = {}
    for number, source in enumerate(train):
        for example in source:
            groups.setdefault((number, example.source, example.task), []).append(example)
    return list(groups.values())


def tell_small(groups: SourceExamples, together: int) -> None:
    """Warn of groups that do not fill a batch."""
    small = [group for group in groups if len(group) < together]
    for group in small[:TOLD]:
        logger.warning(
            "a task has %d examples, fewer than the %d of a batch, which repeats them: %r",
            len(group),
            together,
            group[0].task or group[0].source or group[0].query[:60],
        )
    if len(small) > TOLD:
        logger.warning(
            "so have %d more; a `source` of a line is meant to name a data set", len(small) - TOLD
        )


class ListFeedback:
    """What a reranker takes from the vectors of a list, see `feedback.Feedback`."""

    def __init__(
        self,
        feedback: Feedback,
        vectors: TextVectors,
        query_vectors: TextVectors | Mapping[str | None, TextVectors],
    ) -> None:
        self.feedback = feedback
        self.vectors = vectors
        self.query_vectors = query_vectors

    def of(self, example: RankingExample) -> tuple[list[str], Embeddings]:
        """The documents, best first, and the vector that is added: float32 [dim]."""
        vectors = self.vectors.of(example.documents)
        (query,) = vectors_of_task(self.query_vectors, example.task).of([example.query])
        evidence = self.feedback.evidence(example.query, example.documents, vectors @ query)
        added = self.feedback.weight * self.feedback.mean(vectors, evidence)
        return [example.documents[place] for place in order(evidence)], added


class ListDataset(Dataset[DrawnList]):
    """The lists of all sources, one after the other, drawn anew in each epoch."""

    def __init__(
        self,
        sources: SourceExamples,
        config: ListwiseConfig,
        *,
        seed: int,
        feedback: ListFeedback | None = None,
    ) -> None:
        self.examples = [example for source in sources for example in source]
        self.config = config
        self.seed = seed
        self.epoch = 0
        self.feedback = feedback

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> DrawnList:
        example = self.examples[index]
        draw = random.Random(f"{self.seed} {self.epoch} {index}")
        places, positive = scored_places(example, self.config.list_size, self.config.positive)
        deepest = max(self.config.prompt.depths)
        best: Sequence[str] = example.documents
        added = None
        if self.feedback is not None:
            best, added = self.feedback.of(example)
        return DrawnList(
            query=example.query,
            documents=tuple(example.documents[place] for place in places),
            labels=tuple(example.labels[place] for place in places),
            positive=positive,
            shown=_shown(best, deepest, self.config.prompt.order, draw),
            depth=draw.choice(self.config.prompt.depths),
            relevant=relevant_texts(example, best=self.config.positive == "highest"),
            task=example.task,
            feedback=added,
        )


class SourceBatches(Sampler[list[int]]):
    """Batches of one source each, sources in turn by chance: one task per batch.

    An epoch takes as many batches as the examples fill; sources are drawn in proportion to their
    size to the power `balance`, and begin anew when they run out.

    together: so many batches in a row are of one source; processes that share their negatives take
        them side by side.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        batch_size: int,
        *,
        balance: float,
        seed: int,
        dataset: Any,
        together: int = 1,
    ) -> None:
        self.sizes = sizes
        self.batch_size = batch_size
        self.balance = balance
        self.seed = seed
        self.dataset = dataset
        self.together = together
        self.drop_last = True
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer's data loader before each epoch."""
        self.epoch = self.dataset.epoch = epoch

    def __len__(self) -> int:
        return max(1, sum(self.sizes) // self.batch_size // self.together) * self.together

    def __iter__(self) -> Iterator[list[int]]:
        draw = random.Random(f"{self.seed} {self.epoch}")
        streams = []
        start = 0
        for size in self.sizes:
            streams.append(_endless(range(start, start + size), draw))
            start += size
        weights = [size**self.balance for size in self.sizes]
        for number in range(len(self)):
            if number % self.together == 0:
                (stream,) = draw.choices(streams, weights)
            yield [next(stream) for _ in range(self.batch_size)]


class ScoredListCollator:
    """What is scored, as tensors. `B` lists, `L` documents in the longest, `N = B * L`.

    relevance, listed: float and bool [B, L]: labels, and which places hold a document.
    positives: int [B], in 0..N. counted: bool [B, N]: documents that the InfoNCE of a query takes.
    With frozen documents query_vectors [B, D] and document_vectors [B, L, D], else the tokens of
    queries and of the N documents.

    tokenizer: of lists without a task; tasks: those of the tasks of the data.
    vectors, query_vectors: of all documents and, by task, queries, where they are frozen.
    """

    def __init__(
        self,
        tokenizer: TextTokenizer,
        *,
        pad_id: int,
        vectors: TextVectors | None = None,
        query_vectors: TextVectors | Mapping[str | None, TextVectors] | None = None,
        tasks: Mapping[str, TextTokenizer] | None = None,
    ) -> None:
        # Not `tokenizer`: the trainer would save it as one of transformers.
        self.text_tokenizer = tokenizer
        self.tasks = tasks or {}
        self.pad_id = pad_id
        self.vectors = vectors
        self.query_vectors = query_vectors

    def tokenizer_of(self, task: str | None) -> TextTokenizer:
        return self.text_tokenizer if task is None else self.tasks.get(task, self.text_tokenizer)

    def scored(self, lists: Sequence[ScoredList]) -> dict[str, Any]:
        task = one_task(lists)
        longest = max(len(drawn.documents) for drawn in lists)
        texts = [
            text
            for drawn in lists
            for text in (*drawn.documents, *[""] * (longest - len(drawn.documents)))
        ]
        queries = [drawn.query for drawn in lists]
        batch: dict[str, Any] = {
            # Not "labels": that key lets the trainer scale the loss by its own count.
            "relevance": _padded([drawn.labels for drawn in lists], longest),
            "listed": torch.tensor([text != "" for text in texts]).view(len(lists), longest),
            "positives": torch.tensor([i * longest + d.positive for i, d in enumerate(lists)]),
            "counted": _counted(lists, texts),
        }
        if self.vectors is None or self.query_vectors is None:
            tokenizer = self.tokenizer_of(task)
            batch["queries"] = collate(tokenizer.queries(queries), pad_id=self.pad_id)
            batch["documents"] = collate(tokenizer.documents(texts), pad_id=self.pad_id)
            return batch
        asked = vectors_of_task(self.query_vectors, task)
        batch["query_vectors"] = torch.from_numpy(asked.of(queries))
        # Any vector will do for padding, which no loss counts.
        vectors = torch.from_numpy(self.vectors.of([text or texts[0] for text in texts]))
        batch["document_vectors"] = vectors.view(len(lists), longest, -1)
        return batch


class ListCollator(ScoredListCollator):
    """Lists to tensors: those of `ScoredListCollator`; prompts: tokens of the listwise prompts, see
    `tokenization.collate`; and feedback [B, D], where the lists have it."""

    def __call__(self, lists: Sequence[DrawnList]) -> dict[str, Any]:
        depth = lists[0].depth  # one for the batch: prompts of one depth are of like length
        prompts, _ = self.tokenizer_of(one_task(lists)).listwise(
            [drawn.query for drawn in lists], [drawn.shown for drawn in lists], depth
        )
        batch = {"prompts": collate(prompts, pad_id=self.pad_id), **self.scored(lists)}
        feedback = [drawn.feedback for drawn in lists if drawn.feedback is not None]
        if feedback:
            batch["feedback"] = torch.from_numpy(np.stack(feedback))
        return batch


def one_task(lists: Sequence[ScoredList]) -> str | None:
    """That of a batch; ValueError for lists of several, which one instruction cannot serve."""
    tasks = {drawn.task for drawn in lists}
    if len(tasks) > 1:
        raise ValueError(f"the lists of a batch have several tasks: {sorted(map(str, tasks))}")
    return tasks.pop()


def vectors_of_task(
    vectors: TextVectors | Mapping[str | None, TextVectors], task: str | None
) -> TextVectors:
    """One table for all tasks, or that of the task."""
    return vectors if isinstance(vectors, TextVectors) else vectors[task]


def scored_places(
    example: RankingExample, size: int, positive: Literal["highest", "known"]
) -> tuple[list[int], int]:
    """The documents of a list, and which of them is the positive of the InfoNCE.

    Up to half the list relevant ones, then others, both as they come. Not by chance: relevant
    documents that the retrieval did not find stand at the end, and lists full of them are like
    nothing that is ranked at test time. A positive that this leaves out takes the first place.
    """
    relevant = relevant_places(example, best=positive == "highest")
    others = other_places(example, relevant)
    most = size - min(len(others), size // 2)
    places = relevant[:most]
    places += others[: size - len(places)]
    if positive == "known":
        chosen = _known_positive(example)
    elif is_order(example):
        chosen = best_place(example)
    else:
        chosen = max(places, key=example.labels.__getitem__)
    if chosen not in places:
        places[0] = chosen
    return places, places.index(chosen)


def _known_positive(example: RankingExample) -> int:
    if example.positive is None:
        raise ValueError(
            f'positive is "known", but the example of {example.query[:60]!r} names none'
        )
    return example.positive


def _shown(
    documents: Sequence[str], depth: int, order: str, draw: random.Random
) -> tuple[str, ...]:
    """Shuffled among twice as many as fit: at test time too, what is shown varies."""
    if order == "retrieved" or (order == "mixed" and draw.random() < 0.5):
        return tuple(documents[:depth])
    nearest = list(documents[: 2 * depth])
    draw.shuffle(nearest)
    return tuple(nearest[:depth])


def _endless(places: range, draw: random.Random) -> Iterator[int]:
    while True:
        yield from draw.sample(places, len(places))


def _padded(rows: Sequence[Sequence[float]], length: int) -> Tensor:
    return torch.tensor([[*row, *[0.0] * (length - len(row))] for row in rows])


def _counted(lists: Sequence[ScoredList], texts: Sequence[str]) -> Tensor:
    compared = [words(text) for text in texts]
    left_out = [{"", *map(words, (drawn.query, *drawn.relevant))} for drawn in lists]
    return torch.tensor([[text not in left for text in compared] for left in left_out])
