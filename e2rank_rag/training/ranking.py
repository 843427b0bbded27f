"""From examples to batches of scored lists: which documents, in which passes, how often they count.

Every draw depends on the seed, the epoch and the example alone, as in `batches`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from e2rank_rag.losses import (
    pointwise_ce_loss,
    poly1_softmax_loss,
    ranknet_loss,
    softmax_ce_loss,
)
from e2rank_rag.pair_tokenization import PairTokenizer
from e2rank_rag.tokenization import Tokens, batches_by_length
from e2rank_rag.training.config import RankingLoss, RankT5Config, Targets
from e2rank_rag.training.relevance import is_order, own_places, relevant_places
from e2rank_rag.types import RankingExample

_PADDING = -1


class RankedList(NamedTuple):
    """One list of a batch: documents that are scored with their query, and what the loss takes for
    their labels."""

    query: str
    documents: tuple[str, ...]
    labels: tuple[float, ...]


class RankedListDataset(Dataset[RankedList]):
    """The lists of all sources, one after the other, drawn anew in each epoch.

    loss, targets: see `target_labels`.
    """

    def __init__(
        self,
        sources: Sequence[Sequence[RankingExample]],
        *,
        list_size: int,
        candidates: int | None,
        seed: int,
        loss: RankingLoss = "softmax",
        targets: Targets | None = None,
    ) -> None:
        self.examples = [example for source in sources for example in source]
        self.list_size = list_size
        self.candidates = candidates
        self.loss = loss
        self.targets = targets
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> RankedList:
        example = self.examples[index]
        draw = random.Random(f"{self.seed} {self.epoch} {index}")
        places = drawn_places(example, self.list_size, self.candidates, draw)
        return RankedList(
            example.query,
            tuple(example.documents[place] for place in places),
            tuple(target_labels(example, places, self.loss, self.targets)),
        )


def target_labels(
    example: RankingExample,
    places: Sequence[int],
    loss: RankingLoss,
    targets: Targets | None = None,
) -> list[float]:
    """What a loss takes for the labels of these documents.

    "pair" takes the labels: of those only the order matters.

    The other losses are the paper's for labels of 1 and 0 (arXiv 2210.10634, section 5.1). A
    teacher's order of 16 would give them targets of 16/136, 15/136, ..., nearly those of chance. So
    its targets are 1 for relevant documents (`relevance`) and 0 for the others ("relevant"); grades
    stay as they are ("labels").
    """
    if targets is None:
        targets = "relevant" if is_order(example) else "labels"
    if loss == "pair" or targets == "labels":
        return [example.labels[place] for place in places]
    relevant = set(relevant_places(example))
    return [float(place in relevant) for place in places]


def drawn_places(
    example: RankingExample, size: int, candidates: int | None, draw: random.Random
) -> list[int]:
    """One relevant document, then up to `size - 1` others, all by chance (RankT5, section 5.1).

    Which are relevant, `relevance` says. The others are not, and are no copies of a relevant
    document or of the query. Where the relevant ones have more than one grade, the others are drawn
    from all the rest and keep their grades.

    candidates: the others are among the first so many of the list; None: anywhere.
    """
    labels, texts = example.labels, example.documents
    relevant = relevant_places(example)
    known = {texts[place] for place in relevant}
    graded = not is_order(example) and len({labels[place] for place in relevant}) > 1
    first = draw.choice(relevant)
    barred = set(own_places(example)) - set(relevant)
    others = [
        place
        for place in range(len(texts))[:candidates]
        if place != first and place not in barred and (graded or texts[place] not in known)
    ]
    return [first, *draw.sample(others, min(size - 1, len(others)))]


class RankedListCollator:
    """Lists to tensors. `B` lists, `L` documents in the longest, `n` pairs in all.

    chunks: tokens of the pairs, see `PairTokenizer.collate`, longest first, in passes of at most
        `chunk_tokens` (None: one pass). places: int [n], where in `B * L` each pair belongs.
    relevance, listed: float and bool [B, L]: labels, and which places hold a document.
    repeated: with `upsample`, int [B, R]: for each list the places that its loss counts, see
        `upsampled_places`; -1 is padding.
    """

    def __init__(
        self, tokenizer: PairTokenizer, *, chunk_tokens: int | None, upsample: bool
    ) -> None:
        # Not `tokenizer`: the trainer would save it as one of transformers.
        self.pair_tokenizer = tokenizer
        self.chunk_tokens = chunk_tokens
        self.upsample = upsample

    def __call__(self, lists: Sequence[RankedList]) -> dict[str, Any]:
        longest = max(len(drawn.documents) for drawn in lists)
        pairs: list[Tokens] = []
        places: list[int] = []
        for row, drawn in enumerate(lists):
            pairs += self.pair_tokenizer.pairs(drawn.query, drawn.documents)
            places += range(row * longest, row * longest + len(drawn.documents))
        lengths = [len(pair.ids) for pair in pairs]
        at_once = max(lengths) * len(lengths)
        passes = list(batches_by_length(lengths, self.chunk_tokens or at_once))
        labels = [drawn.labels for drawn in lists]
        batch: dict[str, Any] = {
            "chunks": [
                self.pair_tokenizer.collate([pairs[row] for row in rows]) for rows in passes
            ],
            "places": torch.tensor([places[row] for rows in passes for row in rows]),
            # Not "labels": that key lets the trainer scale the loss by its own count.
            "relevance": torch.tensor(_padded(labels, longest, 0.0)),
            "listed": torch.tensor(_padded([[True] * len(row) for row in labels], longest, False)),
        }
        if self.upsample:
            rows = [upsampled_places(row) for row in labels]
            most = max(len(row) for row in rows)
            batch["repeated"] = torch.tensor(_padded(rows, most, _PADDING))
        return batch


def upsampled_places(labels: Sequence[float]) -> list[int]:
    """All places of a list, and those of relevant documents again, in turn, until there are as many
    as of the others (RankT5, section 5.1, for pointwise losses)."""
    relevant = [place for place, label in enumerate(labels) if label > 0]
    missing = len(labels) - 2 * len(relevant) if relevant else 0
    return [*range(len(labels)), *(relevant[i % len(relevant)] for i in range(missing))]


Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def ranking_loss(config: RankT5Config) -> Loss:
    """Of scores, labels and mask, each [B, L].

    "softmax" and "poly1" get labels that sum to 1 in each list, as the paper's one relevant
    document has them: every list weighs the same, and a grade is a share of that weight.
    """
    losses: Mapping[str, Loss] = {
        "point_ce": pointwise_ce_loss,
        "pair": ranknet_loss,
        "softmax": _shared(softmax_ce_loss),
        "poly1": _shared(partial(poly1_softmax_loss, epsilon=config.epsilon)),
    }
    return losses[config.loss]


def _shared(loss: Loss) -> Loss:
    """The same loss of labels that are shares of their list's sum; those below 0 count as 0."""

    def of_shares(scores: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        weights = torch.where(mask, labels.clamp(min=0.0), 0.0)
        total = weights.sum(-1, keepdim=True)
        return loss(scores, weights / torch.where(total > 0, total, 1.0), mask)

    return of_shares


def list_loss(scores: Tensor, batch: Mapping[str, Any], loss: Loss) -> Tensor:
    """The loss of a batch of `RankedListCollator`; scores: [n], in the order of its chunks."""
    labels, listed = batch["relevance"], batch["listed"]
    table = scores.new_zeros(labels.numel()).index_copy(0, batch["places"], scores)
    table = table.view_as(labels)
    if "repeated" in batch:
        listed = batch["repeated"] != _PADDING
        places = batch["repeated"].clamp(min=0)
        table, labels = table.gather(1, places), labels.gather(1, places)
    return loss(table, labels, listed)


def _padded(rows: Sequence[Sequence[Any]], length: int, padding: Any) -> list[list[Any]]:
    return [[*row, *[padding] * (length - len(row))] for row in rows]
