"""Stage 1: a model that retrieves, trained by InfoNCE over the documents of a batch."""

from __future__ import annotations

import hashlib
import logging
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from e2rank_rag.distributed import gather, process, processes
from e2rank_rag.losses import info_nce_loss
from e2rank_rag.models.e2rank import TextModel
from e2rank_rag.recipe import Recipe
from e2rank_rag.tokenization import TextTokenizer, Tokens
from e2rank_rag.training.base_model import (
    open_base,
    save_merged,
    task_tokenizers,
    trainable_model,
)
from e2rank_rag.training.config import ContrastiveConfig
from e2rank_rag.training.dev_sets import RetrievalSet
from e2rank_rag.training.gradcache import embed
from e2rank_rag.training.lists import SourceExamples, TrainingList, groups_of, task_of
from e2rank_rag.training.relevance import (
    best_place,
    drawn_places,
    is_order,
    other_places,
    relevant_places,
    relevant_texts,
    words,
)
from e2rank_rag.training.sources import read_retrieval, read_training
from e2rank_rag.training.stage import Stage
from e2rank_rag.types import RankingExample

logger = logging.getLogger(__name__)


class Contrastive(Stage[ContrastiveConfig]):
    """Stage 1 of E2Rank. Dev sets are measured by what the model itself retrieves."""

    defaults = {  # noqa: RUF012 - declared in Stage
        # Section 4.1 of the paper has 5e-6 here; its appendix C has the stage's other settings too.
        "learning_rate": 2e-5,
        "warmup_steps": 300,
        "per_device_train_batch_size": 512,
    }
    """The paper's values (arXiv 2510.22733, appendix C)."""

    data: ContrastiveData

    @property
    def together(self) -> int:
        """As many batches in a row as processes share their negatives."""
        return processes() if self.config.cross_device_negatives else 1

    @property
    def facts(self) -> dict[str, Any]:
        """Negatives per query, before copies are masked.

        hard: hard negatives. in_all: all documents of a step that the query is compared with,
        without its positive.
        """
        documents = self.arguments.per_device_train_batch_size * self.together
        in_all = documents * (1 + self.data.negatives) - 1
        return {"negatives": {"hard": self.data.negatives, "in_all": in_all}}

    @contextmanager
    def open(self) -> Iterator[None]:
        """The base is closed before training: a copy of its weights is trained."""
        config, seed = self.config, self.arguments.seed
        with open_base(config, self.arguments.device) as base:
            mined = config.negatives > 0
            self.examples = read_training(config.data, base, None, seed=seed, mine=mined)
            self.dev = read_retrieval(config.dev, base, seed=seed)
        self.recipe, self.weights, self.digest = base.recipe, base.weights_folder, base.digest
        self.groups = groups_of(self.examples)
        shorter = _training_lengths(self.recipe, config.max_tokens)
        self.data = ContrastiveData(
            config, self.groups, task_tokenizers(self.weights, shorter, self.examples)
        )
        self.data.refuse_wordless(self.groups)
        serving = task_tokenizers(self.weights, self.recipe, ())[None]
        self.model = trainable_model(config, self.weights)
        self.encoder = TextModel(self.model, serving)
        self._tell()
        yield

    def step_loss(
        self, model: nn.Module, batch: Mapping[str, Any]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `contrastive_loss`."""
        queries, documents = (
            embed(model, batch[side], truncate_dim=self.recipe.truncate_dim)
            for side in ("queries", "documents")
        )
        return contrastive_loss(queries, documents, batch, self.config)

    def measure(self, dev: RetrievalSet) -> dict[str, float]:
        """The figures of the model's retrieval."""
        return dev.measure(self.encoder)

    def save(self, model: Any) -> None:
        """An encoder with the base's recipe."""
        save_merged(self.config.output, model, self.weights, self.recipe)

    def _tell(self) -> None:
        """Log what a batch compares, and warn of what is probably a mistake."""
        counts = self.facts["negatives"]
        logger.info("a query has %d negatives, %d of them hard", counts["in_all"], counts["hard"])
        if self.config.negatives > counts["hard"]:
            logger.warning(
                "negatives is %d, but no example has more than %d documents with a label of 0 or "
                "below",
                self.config.negatives,
                counts["hard"],
            )
        if self.arguments.gradient_accumulation_steps > 1:
            logger.warning(
                "gradient_accumulation_steps is %d, which adds no negatives: raise "
                "per_device_train_batch_size instead; chunk_size bounds the memory",
                self.arguments.gradient_accumulation_steps,
            )


class ContrastiveData:
    """Each example becomes its query, one positive and hard negatives.

    The positive is drawn from the documents with the highest label, unless the example names it.
    Hard negatives are drawn from the documents with a label of 0 or below; in a teacher's order
    from all that are not relevant. Copies of the query are neither.

    negatives: hard negatives per query, at most; fewer if no example has so many.
    """

    def __init__(
        self,
        config: ContrastiveConfig,
        groups: SourceExamples,
        tokenizers: Mapping[str | None, TextTokenizer],
    ) -> None:
        examples = [example for group in groups for example in group]
        self.tokenizers = tokenizers
        self.chunk_size = config.chunk_size
        self._repeated = _relevant_of_repeated(examples)
        most = max(len(self._others(each, self._relevant(each))) for each in examples)
        self.negatives = min(config.negatives, most)

    def sample(self, example: RankingExample, draw: random.Random) -> TrainingList:
        """The positive first, then the hard negatives."""
        relevant = self._relevant(example)
        others = self._others(example, relevant)
        places = drawn_places(_positives(example), others, self.negatives, draw)
        return TrainingList(
            query=example.query,
            documents=tuple(example.documents[place] for place in places),
            labels=(1.0, *[0.0] * (len(places) - 1)),
            relevant=relevant,
            task=example.task,
        )

    def collate(self, lists: Sequence[TrainingList]) -> dict[str, Any]:
        """`Q` queries, each with a positive and `negatives` others, so `N` documents.

        queries, documents: chunks of tokens, each of at most `chunk_size` texts; documents by
            length, so that chunks hold little padding.
        positives: int [Q], from 0 to N - 1.
        document_keys: int [N], equal if the texts are. relevant_keys: int [Q, R], the keys of the
            documents that are not negatives of a query, among them those of the query itself and of
            the empty text, which fills up missing negatives and missing relevant texts.
        """
        tokenizer = self.tokenizers[task_of(lists)]
        size = 1 + self.negatives
        texts = [text for each in lists for text in _filled(each.documents, size)]
        tokens = tokenizer.documents(texts)
        # Longest first: a batch that does not fit into memory fails at its first chunk.
        order = sorted(range(len(texts)), key=lambda place: -len(tokens[place].ids))
        places = {place: row for row, place in enumerate(order)}
        queries = tokenizer.queries([each.query for each in lists])
        return {
            "queries": self._chunks(tokenizer, queries),
            "documents": self._chunks(tokenizer, [tokens[place] for place in order]),
            "positives": torch.tensor([places[i * size] for i in range(len(lists))]),
            "document_keys": torch.tensor([text_key(texts[place]) for place in order]),
            "relevant_keys": _relevant_keys(lists),
        }

    def refuse_wordless(self, groups: SourceExamples) -> None:
        """ValueError for a query without any token, before it would stop the training."""
        for group in groups:
            for start in range(0, len(group), 1024):
                queries = [example.query for example in group[start : start + 1024]]
                self.tokenizers[group[0].task].queries(queries)

    def _chunks(
        self, tokenizer: TextTokenizer, tokens: Sequence[Tokens]
    ) -> list[dict[str, Tensor]]:
        size = self.chunk_size or len(tokens)
        return [
            tokenizer.collate(tokens[start : start + size]) for start in range(0, len(tokens), size)
        ]

    def _relevant(self, example: RankingExample) -> frozenset[str]:
        return self._repeated.get(example.query) or _relevant(example)

    def _others(self, example: RankingExample, relevant: frozenset[str]) -> list[int]:
        """Places of what may be a hard negative, each text once."""
        places = other_places(example, relevant_places(example, best=example.positive is None))
        first: dict[str, int] = {}
        for place in places:
            first.setdefault(example.documents[place], place)
        return [place for text, place in first.items() if text not in relevant]


def contrastive_loss(
    queries: Tensor, documents: Tensor, batch: Mapping[str, Any], config: ContrastiveConfig
) -> tuple[Tensor, dict[str, Tensor]]:
    """InfoNCE of a batch of `ContrastiveData`, and the mean number of negatives.

    queries [Q, D], documents [N, D]: of this process, unit length.
    """
    positives, keys = batch["positives"], batch["document_keys"]
    answers = documents[positives].detach()
    if config.cross_device_negatives:
        # Every process has as many documents, so its own begin at its number times that.
        positives = positives + process() * len(documents)
        documents, keys = gather(documents), gather(keys)
    counted = counted_documents(keys, batch["relevant_keys"])
    if config.near_positive is not None:
        counted &= answers @ documents.detach().T < config.near_positive
    loss = info_nce_loss(
        queries, documents, positives, temperature=config.temperature, mask=counted
    )
    return loss, {"negatives": counted.sum(1).float().mean()}


def counted_documents(document_keys: Tensor, relevant_keys: Tensor) -> Tensor:
    """Which documents are negatives of a query, by their texts, bool [Q, N]."""
    counted = torch.ones(
        len(relevant_keys), len(document_keys), dtype=torch.bool, device=document_keys.device
    )
    for keys in relevant_keys.T:  # [Q, N, R] at once would be large
        counted &= document_keys[None, :] != keys[:, None]
    return counted


def text_key(text: str) -> int:
    """64 bits that are the same in every process, whatever the white space between words."""
    digest = hashlib.blake2b(words(text).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def _relevant_keys(lists: Sequence[TrainingList]) -> Tensor:
    rows = [["", each.query, *sorted(each.relevant)] for each in lists]
    longest = max(len(row) for row in rows)
    return torch.tensor([[text_key(text) for text in _filled(row, longest)] for row in rows])


def _filled(texts: Sequence[str], count: int) -> list[str]:
    return [*texts, *[""] * (count - len(texts))]


def _positives(example: RankingExample) -> list[int]:
    if example.positive is not None:
        return [example.positive]
    if is_order(example):
        return [best_place(example)]
    best = max(example.labels)
    return [place for place, label in enumerate(example.labels) if label == best]


def _relevant(example: RankingExample) -> frozenset[str]:
    return relevant_texts(example, best=example.positive is None)


def _relevant_of_repeated(examples: Sequence[RankingExample]) -> dict[str, frozenset[str]]:
    """For each query with several examples, the texts that are relevant in any of them."""
    counts = Counter(example.query for example in examples)
    found: dict[str, set[str]] = {}
    for example in examples:
        if counts[example.query] > 1:
            found.setdefault(example.query, set()).update(_relevant(example))
    return {query: frozenset(texts) for query, texts in found.items()}


def _training_lengths(recipe: Recipe, max_tokens: int | None) -> Recipe:
    """The recipe with the limits of training; the saved recipe keeps the base's."""
    if max_tokens is None:
        return recipe
    lengths = {
        name: min(getattr(recipe, name), max_tokens) for name in ("query_tokens", "document_tokens")
    }
    return recipe.model_copy(update=lengths)
