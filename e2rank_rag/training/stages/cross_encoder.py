"""Stage `rankt5`: a cross-encoder, trained by a ranking loss over lists (arXiv 2210.10634)."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from e2rank_rag.models.cross_encoder import PairModel
from e2rank_rag.models.cross_encoder_folder import (
    head_modules,
    load_cross_encoder,
    read_cross_encoder_recipe,
    save_cross_encoder,
)
from e2rank_rag.models.e2rank_folder import read_recipe
from e2rank_rag.models.encoder import Encoder
from e2rank_rag.models.folders import name_of_base, read_system, resolve_folder
from e2rank_rag.models.tokenizer_files import load_tokenizer
from e2rank_rag.models.weights import weights_digest
from e2rank_rag.pair_tokenization import PairTokenizer
from e2rank_rag.recipe import CrossEncoderRecipe
from e2rank_rag.rerankers import CrossEncoderReranker
from e2rank_rag.tokenization import MIN_SHARE, Tokens, batches_by_length, padded
from e2rank_rag.training.base_model import document_vectors, merged, with_options
from e2rank_rag.training.config import RankingLoss, RankT5Config, Targets
from e2rank_rag.training.dev_sets import NDCG, DevSet
from e2rank_rag.training.gradcache import in_chunks
from e2rank_rag.training.lists import TrainingList, label_tensors
from e2rank_rag.training.objective import PADDING, ranking_loss, scores_loss
from e2rank_rag.training.relevance import drawn_places, is_order, own_places, relevant_places
from e2rank_rag.training.sources import is_mined, read_dev, read_training
from e2rank_rag.training.stage import Stage
from e2rank_rag.types import RankingExample

logger = logging.getLogger(__name__)

MEASURES = {"rerank": NDCG, "RR@10": "RR@10", "nDCG@5": "nDCG@5", "AP": "AP"}
"""The measures of section 5.1, by the name of their figure in the log."""


class CrossEncoderStage(Stage[RankT5Config]):
    """Trains a cross-encoder."""

    defaults = {  # noqa: RUF012 - declared in Stage
        "learning_rate": 1e-4,
        "lr_scheduler_type": "constant",
        "per_device_train_batch_size": 32,
    }
    """The paper's values (arXiv 2210.10634, section 5.2)."""

    decides = ("rerank",)

    @contextmanager
    def open(self) -> Iterator[None]:
        """The retriever of mined sources is closed before training."""
        config = self.config
        self.weights, self.recipe = _base(config)
        self._read()
        self.groups = self.examples  # a cross-encoder has no task: batches may mix them
        # Here, so that a new head is the same whether or not sources were mined.
        torch.manual_seed(self.arguments.seed)
        base = load_cross_encoder(self.weights, self.recipe, dtype=torch.float32, fresh_head=True)
        self.digest = weights_digest(base, pooler=True)
        heads = head_modules(base)
        in_heads = [name for name, _ in base.named_modules() if name.partition(".")[0] in heads]
        self.model = with_options(base, config, left_alone=in_heads, heads=heads)
        self.pairs = PairModel(self.model, load_tokenizer(self.weights), self.recipe)
        self._check()
        self.data = CrossEncoderData(config, self.pairs.tokenizer)
        self.loss = ranking_loss(config)
        self.reranker = CrossEncoderReranker(self.pairs)
        yield

    def step_loss(
        self, model: nn.Module, batch: Mapping[str, Any]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `objective.scores_loss`."""
        scores = in_chunks(model, batch["chunks"], self.pairs.read)
        return scores_loss(scores, batch, self.loss), {}

    def measure(self, dev: DevSet) -> dict[str, float]:
        """`MEASURES` of the candidates in their new order."""
        return dev.measure_reranked(self.reranker, MEASURES)

    def save(self, model: Any) -> None:
        """A cross-encoder with LoRA layers merged in."""
        tokenizer = load_tokenizer(self.weights)
        save_cross_encoder(self.config.output, merged(model), tokenizer, self.recipe)

    def _read(self) -> None:
        """Read lists to train on and dev sets; `config.retriever` finds candidates."""
        config, seed = self.config, self.arguments.seed
        self.examples, self.dev = [], []
        with _retriever(config, self.arguments.device) as retriever:
            # Several splits may have one corpus.
            known = None if retriever is None else document_vectors(retriever, config.vectors)
            for source in config.data:
                vectors = known if is_mined(source) else None
                self.examples += read_training([source], retriever, vectors, seed=seed)
            for source in config.dev:
                vectors = known if is_mined(source) else None
                self.dev += read_dev([source], retriever, vectors, seed=seed)

    def _check(self) -> None:
        """ValueError for queries that would stop the training, and if no list teaches anything."""
        config = self.config
        examples = [example for part in self.examples for example in part]
        measured = [query for part in self.dev for query in part.queries.values()]
        for query in [*(example.query for example in examples), *measured]:
            room = self.pairs.tokenizer.room(query)
            if room < MIN_SHARE:
                raise ValueError(
                    f"max_tokens is {self.recipe.max_tokens}: a query leaves {max(room, 0)} of "
                    f"them for a document, and {MIN_SHARE} are the fewest; raise it or leave the "
                    f"query out: {query[:60]!r}"
                )
        labels = [
            target_labels(example, range(len(example.labels)), config.loss, config.targets)
            for example in examples
        ]
        if config.loss == "point_ce":
            idle = sum(min(row) > 0 for row in labels)
            lacking = "a document with a label of 0 or below"
        else:
            idle = sum(len(set(row)) == 1 for row in labels)
            lacking = "two documents of different labels"
        if idle == len(examples):
            raise ValueError(f'no list has {lacking}: the loss "{config.loss}" learns nothing')
        if idle:
            logger.warning(
                '%d of %d lists lack %s: the loss "%s" learns nothing from them',
                idle,
                len(examples),
                lacking,
                config.loss,
            )


@dataclass
class CrossEncoderData:
    """Each example becomes a relevant document and others, drawn anew in each epoch."""

    config: RankT5Config
    tokenizer: PairTokenizer

    def sample(self, example: RankingExample, draw: random.Random) -> TrainingList:
        """One relevant document, then up to `list_size - 1` others, by chance (section 5.1)."""
        config = self.config
        relevant = relevant_places(example)
        others = candidate_places(example, relevant, config.candidates)
        places = drawn_places(relevant, others, config.list_size - 1, draw)
        return TrainingList(
            query=example.query,
            documents=tuple(example.documents[place] for place in places),
            labels=tuple(target_labels(example, places, config.loss, config.targets)),
        )

    def collate(self, lists: Sequence[TrainingList]) -> dict[str, Any]:
        """`B` lists, `L` documents in the longest, `n` pairs in all.

        chunks: tokens of the pairs, longest first, in passes of at most `chunk_tokens`.
        places: int [n], where in `B * L` each pair belongs.
        relevance, listed: see `lists.label_tensors`.
        repeated: if the loss upsamples, int [B, R], the places of each list that its loss counts,
            see `upsampled_places`, with `objective.PADDING` behind them.
        """
        longest = max(len(each.documents) for each in lists)
        pairs: list[Tokens] = []
        places: list[int] = []
        for row, each in enumerate(lists):
            pairs += self.tokenizer.pairs(each.query, each.documents)
            places += range(row * longest, row * longest + len(each.documents))
        lengths = [len(pair.ids) for pair in pairs]
        at_once = max(lengths) * len(lengths)
        passes = list(batches_by_length(lengths, self.config.chunk_tokens or at_once))
        batch: dict[str, Any] = {
            "chunks": [self.tokenizer.collate([pairs[row] for row in rows]) for rows in passes],
            "places": torch.tensor([places[row] for rows in passes for row in rows]),
            **label_tensors(lists),
        }
        if self.config.upsamples:
            repeated = [upsampled_places(each.labels) for each in lists]
            batch["repeated"] = padded(repeated, PADDING, dtype=torch.long)
        return batch


def candidate_places(
    example: RankingExample, relevant: Sequence[int], candidates: int | None
) -> list[int]:
    """The documents for a list beside a relevant one, without its copies and the query's.

    If the relevant documents have several grades, a list may hold several of them, and the loss
    takes the grades. candidates: how many documents to choose from, from the first on; None: all.
    """
    labels, texts = example.labels, example.documents
    known = {texts[place] for place in relevant}
    graded = not is_order(example) and len({labels[place] for place in relevant}) > 1
    barred = set(own_places(example)) - set(relevant)
    return [
        place
        for place in range(len(texts))[:candidates]
        if place not in barred and (graded or texts[place] not in known)
    ]


def target_labels(
    example: RankingExample,
    places: Sequence[int],
    loss: RankingLoss,
    targets: Targets | None = None,
) -> list[float]:
    """The labels of these documents as the loss takes them.

    "pair" takes the labels, because only their order counts.

    The other losses are the paper's for labels of 1 and 0 (arXiv 2210.10634, section 5.1). A
    teacher's order of 16 documents would give targets of 16/136, 15/136, ..., which are nearly
    uniform. With "relevant", the targets are 1 for relevant documents and 0 for the others; with
    "labels" they are the grades. None chooses "relevant" for a teacher's order.
    """
    if targets is None:
        targets = "relevant" if is_order(example) else "labels"
    if loss == "pair" or targets == "labels":
        return [example.labels[place] for place in places]
    relevant = set(relevant_places(example))
    return [float(place in relevant) for place in places]


def upsampled_places(labels: Sequence[float]) -> list[int]:
    """All places of a list, with those of relevant documents repeated in turn until there are as
    many as of the others (RankT5, section 5.1, for pointwise losses)."""
    relevant = [place for place, label in enumerate(labels) if label > 0]
    missing = len(labels) - 2 * len(relevant) if relevant else 0
    return [*range(len(labels)), *(relevant[i % len(relevant)] for i in range(missing))]


def _base(config: RankT5Config) -> tuple[Path, CrossEncoderRecipe]:
    """The folder that training begins from, and how it scores."""
    folder = resolve_folder(config.init_from).resolve()
    if read_system(folder) == "e2rank":
        adapter = read_recipe(folder, name=config.init_from).adapter
        if adapter is not None:
            raise ValueError(
                f"{config.init_from} has a listwise adapter, which cannot be trained "
                f"further: begin from its base, {name_of_base(adapter.base, folder)!r}"
            )
    recipe = read_cross_encoder_recipe(
        folder,
        name=config.init_from,
        structure=config.structure,
        score_token=config.score_token,
        pooling=config.pooling,
        max_tokens=config.max_tokens,
        encoders_too=True,
    )
    return folder, recipe


@contextmanager
def _retriever(config: RankT5Config, device: torch.device) -> Iterator[Any]:
    """The encoder that finds candidates; None if every source holds lists already."""
    if not any(is_mined(source) for source in (*config.data, *config.dev)):
        for name in ("retriever", "vectors"):
            if name in config.model_fields_set and getattr(config, name) is not None:
                raise ValueError(f"{name}: no source is mined, so it is not used; leave it out")
        yield None
        return
    with Encoder.from_pretrained(config.retriever, device=str(device)) as encoder:
        yield encoder
