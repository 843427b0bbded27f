"""Lists of passages for a ResRank: which, in which order, and the tensors of a batch."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Dataset

from e2rank_rag.models.residual import collate_lists
from e2rank_rag.models.resrank import ListForward
from e2rank_rag.tokenization import TextTokenizer, collate
from e2rank_rag.training.batches import (
    SourceExamples,
    counted,
    padded,
    positive_place,
    relevant_texts,
    scored_places,
)
from e2rank_rag.training.config import ResRankConfig
from e2rank_rag.training.vectors import TextVectors


@dataclass(frozen=True, slots=True)
class PassageList:
    """One list of a batch; `positive` is a place in it, `relevant` are texts that answer."""

    query: str
    documents: tuple[str, ...]
    labels: tuple[float, ...]
    positive: int
    relevant: frozenset[str]


class PassageDataset(Dataset[PassageList]):
    """The lists of all sources, one after the other, drawn anew in each epoch."""

    def __init__(self, sources: SourceExamples, config: ResRankConfig, *, seed: int) -> None:
        self.examples = [example for source in sources for example in source]
        self.config = config
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> PassageList:
        example = self.examples[index]
        draw = random.Random(f"{self.seed} {self.epoch} {index}")
        places = scored_places(example.labels, self.config.list_size)
        positive = places[positive_place(example, places, self.config.positive)]
        # As retrieved: a relevant passage must not be told by its place.
        places.sort()
        order = self.config.order
        if order == "shuffled" or (order == "mixed" and draw.random() < 0.5):
            draw.shuffle(places)
        return PassageList(
            query=example.query,
            documents=tuple(example.documents[place] for place in places),
            labels=tuple(example.labels[place] for place in places),
            positive=places.index(positive),
            relevant=relevant_texts(example),
        )


class PassageCollator:
    """Lists to tensors. `B` lists, `L` passages in the longest, `N = B * L`.

    lists: tensors of `residual.collate_lists`. relevance, listed: float and bool [B, L]: labels,
    and which places hold a passage. positives: int [B], in 0..N. counted: bool [B, N]: documents
    that the InfoNCE of a query takes. In frozen mode query_vectors [B, D] and document_vectors
    [B, L, D]; in joint mode the encoder's tokens of queries and of the N documents.

    forward: of the reranker. texts: the encoder's tokenizer, with its padding.
    vectors, query_vectors: of all documents and queries, for frozen mode.
    """

    def __init__(
        self,
        forward: ListForward,
        texts: TextTokenizer,
        *,
        pad_id: int,
        vectors: TextVectors | None = None,
        query_vectors: TextVectors | None = None,
    ) -> None:
        self.list_forward = forward
        self.texts = texts
        self.pad_id = pad_id
        self.vectors = vectors
        self.query_vectors = query_vectors

    def __call__(self, lists: Sequence[PassageList]) -> dict[str, Any]:
        longest = max(len(drawn.documents) for drawn in lists)
        texts = [
            text
            for drawn in lists
            for text in (*drawn.documents, *[""] * (longest - len(drawn.documents)))
        ]
        queries = [drawn.query for drawn in lists]
        tokens = self.list_forward.tokens(queries, [len(drawn.documents) for drawn in lists])
        batch: dict[str, Any] = {
            "lists": collate_lists(tokens, pad_id=self.list_forward.padding),
            # Not "labels": that key lets the trainer scale the loss by its own count.
            "relevance": padded([drawn.labels for drawn in lists], longest),
            "listed": torch.tensor([text != "" for text in texts]).view(len(lists), longest),
            "positives": torch.tensor([i * longest + d.positive for i, d in enumerate(lists)]),
            "counted": counted([drawn.relevant for drawn in lists], texts),
        }
        if self.vectors is None or self.query_vectors is None:
            batch["queries"] = collate(self.texts.queries(queries), pad_id=self.pad_id)
            batch["documents"] = collate(self.texts.documents(texts), pad_id=self.pad_id)
            return batch
        batch["query_vectors"] = torch.from_numpy(self.query_vectors.of(queries))
        # Any vector will do for padding, which no loss counts.
        vectors = torch.from_numpy(self.vectors.of([text or texts[0] for text in texts]))
        batch["document_vectors"] = vectors.view(len(lists), longest, -1)
        return batch
