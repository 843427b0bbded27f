"""Lists of passages for a ResRank: which, in which order, and the tensors of a batch."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from torch.utils.data import Dataset

from e2rank_rag.list_tokenization import ListTokenizer
from e2rank_rag.tokenization import TextTokenizer
from e2rank_rag.training.batches import (
    ScoredList,
    ScoredListCollator,
    SourceExamples,
    one_task,
    scored_places,
)
from e2rank_rag.training.config import ResRankConfig
from e2rank_rag.training.relevance import relevant_texts


class PassageDataset(Dataset[ScoredList]):
    """The lists of all sources, one after the other, drawn anew in each epoch."""

    def __init__(self, sources: SourceExamples, config: ResRankConfig, *, seed: int) -> None:
        self.examples = [example for source in sources for example in source]
        self.config = config
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> ScoredList:
        example = self.examples[index]
        draw = random.Random(f"{self.seed} {self.epoch} {index}")
        places, chosen = scored_places(example, self.config.list_size, self.config.positive)
        positive = places[chosen]
        # As retrieved: a relevant passage must not be told by its place.
        places.sort()
        order = self.config.order
        if order == "shuffled" or (order == "mixed" and draw.random() < 0.5):
            draw.shuffle(places)
        return ScoredList(
            query=example.query,
            documents=tuple(example.documents[place] for place in places),
            labels=tuple(example.labels[place] for place in places),
            positive=places.index(positive),
            relevant=relevant_texts(example, best=self.config.positive == "highest"),
            task=example.task,
        )


class PassageCollator(ScoredListCollator):
    """Lists to tensors: those of `ScoredListCollator`, and `lists`: those of `ListTokenizer`.

    reader: the reranker's tokenizer; readers: by the task of the data. The other arguments are the
        encoder's.
    """

    def __init__(
        self,
        reader: ListTokenizer,
        tokenizer: TextTokenizer,
        *,
        readers: Mapping[str, ListTokenizer] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(tokenizer, **options)
        self.reader = reader
        self.readers = readers or {}

    def __call__(self, lists: Sequence[ScoredList]) -> dict[str, Any]:
        task = one_task(lists)
        reader = self.reader if task is None else self.readers.get(task, self.reader)
        tokens = reader.lists(
            [drawn.query for drawn in lists], [len(drawn.documents) for drawn in lists]
        )
        return {
            "lists": reader.collate(tokens),
            **self.scored(lists),
        }
