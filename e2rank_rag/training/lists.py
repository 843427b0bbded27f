"""Training lists and their batches: one record, one dataset and one sampler for every stage.

A draw depends on the seed, the epoch and the example alone, so a training run that was stopped goes
on with the batches that it would have had.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from e2rank_rag.tokenization import TextTokenizer, padded
from e2rank_rag.training.relevance import words
from e2rank_rag.training.vectors import FrozenVectors
from e2rank_rag.types import Embeddings, RankingExample

SourceExamples = Sequence[Sequence[RankingExample]]
"""The examples of each source."""

WARNINGS = 5
"""How many small groups are named in warnings; the others are counted."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TrainingList:
    """A query and the documents of one list, as drawn in one epoch.

    labels: one per document; the loss reads them.
    positive: index of the document that is the positive of the InfoNCE.
    relevant: texts that are not negatives of this query, in addition to the query itself.
    task: the task of the example, see `base_model.task_recipe`; a batch has one task.
    shown, depth: documents for the listwise prompt in their order, and how many it may show.
    feedback: float32 [dim], what is added to the reranking vector; None: nothing.
    added: float32, one per document, what its words add to its standardised cosine; None: the score
        is the cosine.
    """

    query: str
    documents: tuple[str, ...]
    labels: tuple[float, ...]
    positive: int = 0
    relevant: frozenset[str] = frozenset()
    task: str | None = None
    shown: tuple[str, ...] = ()
    depth: int = 0
    feedback: Embeddings | None = None
    added: tuple[float, ...] | None = None


Sample = Callable[[RankingExample, random.Random], TrainingList]
"""Draws the list of an example for one epoch."""

Place = tuple[int, int]
"""Epoch and index of an example."""


class ListDataset(Dataset[TrainingList]):
    """The examples of all groups, one after the other, each drawn anew in each epoch."""

    def __init__(self, groups: SourceExamples, sample: Sample, *, seed: int) -> None:
        self.examples = [example for group in groups for example in group]
        self.sample = sample
        self.seed = seed

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, place: Place) -> TrainingList:
        epoch, index = place
        return self.sample(self.examples[index], random.Random(f"{self.seed} {epoch} {index}"))


class SourceBatches(Sampler[list[Place]]):
    """Batches of places in a `ListDataset`, each from one group, groups drawn by chance.

    An epoch has as many batches as the examples fill. A group is drawn in proportion to its size to
    the power `balance`, and begins anew when it runs out.

    together: number of batches in a row from one group; processes that share their negatives take
        one of them each.
    """

    def __init__(
        self, sizes: Sequence[int], batch_size: int, *, balance: float, seed: int, together: int = 1
    ) -> None:
        self.sizes = sizes
        self.batch_size = batch_size
        self.balance = balance
        self.seed = seed
        self.together = together
        self.drop_last = True
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next batches; the trainer's data loader calls this."""
        self.epoch = epoch

    def __len__(self) -> int:
        return max(1, sum(self.sizes) // self.batch_size // self.together) * self.together

    def __iter__(self) -> Iterator[list[Place]]:
        epoch = self.epoch
        draw = random.Random(f"{self.seed} {epoch}")
        streams = []
        start = 0
        for size in self.sizes:
            streams.append(_endless(range(start, start + size), draw))
            start += size
        weights = [size**self.balance for size in self.sizes]
        for number in range(len(self)):
            if number % self.together == 0:
                (stream,) = draw.choices(streams, weights)
            yield [(epoch, next(stream)) for _ in range(self.batch_size)]


def groups_of(train: SourceExamples) -> list[list[RankingExample]]:
    """The examples that may share a batch: one group per source and task.

    A source is an entry of the configuration, or what a line of its file names as `source`.
    """
    groups: dict[tuple[int, str | None, str | None], list[RankingExample]] = {}
    for number, source in enumerate(train):
        for example in source:
            groups.setdefault((number, example.source, example.task), []).append(example)
    return list(groups.values())


def warn_of_small(groups: SourceExamples, batch: int) -> None:
    """Warn of groups that have fewer examples than a batch."""
    small = [group for group in groups if len(group) < batch]
    for group in small[:WARNINGS]:
        logger.warning(
            "a task has %d examples, fewer than the %d of a batch, which repeats them: %r",
            len(group),
            batch,
            group[0].task or group[0].source or group[0].query[:60],
        )
    if len(small) > WARNINGS:
        logger.warning(
            "%d more tasks are as small; a `source` of a line is meant to name a dataset",
            len(small) - WARNINGS,
        )


def label_tensors(lists: Sequence[TrainingList]) -> dict[str, Tensor]:
    """relevance, float [B, L]: the labels; listed, bool [B, L]: which places hold a document."""
    return {
        # Not "labels": with that key the trainer would scale the loss by its own count.
        "relevance": padded([each.labels for each in lists], dtype=torch.float32),
        "listed": padded([[True] * len(each.labels) for each in lists], dtype=torch.bool),
    }


def scored_tensors(
    lists: Sequence[TrainingList],
    tokenizers: Mapping[str | None, TextTokenizer],
    frozen: FrozenVectors | None,
) -> dict[str, Any]:
    """The tensors for losses over lists: `B` lists, `L` documents in the longest, `N = B * L`.

    relevance, listed: see `label_tensors`. positives: int [B], from 0 to N - 1.
    counted: bool [B, N], the documents that the InfoNCE of a query counts.
    With frozen vectors query_vectors [B, D] and document_vectors [B, L, D]; without, the tokens of
    `queries` and of the N `documents`.
    """
    task = task_of(lists)
    longest = max(len(each.documents) for each in lists)
    texts = [
        text
        for each in lists
        for text in (*each.documents, *[""] * (longest - len(each.documents)))
    ]
    queries = [each.query for each in lists]
    batch: dict[str, Any] = {
        **label_tensors(lists),
        "positives": torch.tensor([i * longest + each.positive for i, each in enumerate(lists)]),
        "counted": _counted(lists, texts),
    }
    if frozen is None:
        tokenizer = tokenizers[task]
        batch["queries"] = tokenizer.collate(tokenizer.queries(queries))
        batch["documents"] = tokenizer.collate(tokenizer.documents(texts))
        return batch
    batch["query_vectors"] = torch.from_numpy(frozen.queries[task].of(queries))
    # Padding gets the vector of any text: no loss counts it.
    vectors = torch.from_numpy(frozen.documents.of([text or texts[0] for text in texts]))
    batch["document_vectors"] = vectors.view(len(lists), longest, -1)
    return batch


def task_of(lists: Sequence[TrainingList]) -> str | None:
    """The task of a batch; ValueError for lists of several tasks."""
    tasks = {each.task for each in lists}
    if len(tasks) > 1:
        raise ValueError(f"the lists of a batch have several tasks: {sorted(map(str, tasks))}")
    return tasks.pop()


def _counted(lists: Sequence[TrainingList], texts: Sequence[str]) -> Tensor:
    compared = [words(text) for text in texts]
    left_out = [{"", *map(words, (each.query, *each.relevant))} for each in lists]
    return torch.tensor([[text not in left for text in compared] for left in left_out])


def _endless(places: range, draw: random.Random) -> Iterator[int]:
    while True:
        yield from draw.sample(places, len(places))
