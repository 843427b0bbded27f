"""Train a ResRank: encoder and reranker together, or the reranker over vectors that stay.

folder = train_resrank(read_config("resrank.yaml"))
reranker = load_reranker(folder)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import TrainingArguments

from e2rank_rag.list_tokenization import EncoderOf, ResidualLayout, ResRankRecipe
from e2rank_rag.losses import info_nce_loss, ranknet_loss
from e2rank_rag.models.e2rank import Backbone, TextModel
from e2rank_rag.models.e2rank_folder import ENCODER_FOLDER
from e2rank_rag.models.encoder import Encoder
from e2rank_rag.models.folders import (
    RECIPE_FILE,
    name_beside,
    name_of_base,
    read_system,
    resolve_folder,
)
from e2rank_rag.models.residual import ListBackbone, ResidualHead, token_length
from e2rank_rag.models.resrank import (
    RERANKER_FOLDER,
    ListModel,
    read_head,
    read_resrank_recipe,
    save_head,
)
from e2rank_rag.models.tokenizer_files import load_tokenizer
from e2rank_rag.recipe import Recipe
from e2rank_rag.rerankers import ResidualReranker
from e2rank_rag.tokenization import TextTokenizer, plain_tokenizer
from e2rank_rag.training.batches import SourceBatches, groups_of, tell_small
from e2rank_rag.training.config import ResRankConfig
from e2rank_rag.training.dev_sets import DevSet
from e2rank_rag.training.passage_lists import PassageCollator, PassageDataset
from e2rank_rag.training.run import Run
from e2rank_rag.training.runs import (
    StageTrainer,
    known_vectors,
    open_base,
    query_vectors,
    save_merged,
    task_tokenizers,
    trainable_model,
    without_adapter,
)
from e2rank_rag.training.sources import read_dev, read_training
from e2rank_rag.training.vectors import TextVectors
from e2rank_rag.types import RankingExample, TextEncoder

ARGUMENTS: Mapping[str, Any] = {
    "learning_rate": 5e-6,
    "warmup_steps": 0.03,
    "per_device_train_batch_size": 8,
}
"""E2Rank's values (arXiv 2510.22733, appendix C), under those of the configuration; ResRank's could
not be found."""


def train_resrank(config: ResRankConfig, *, resume: bool = False) -> Path:
    """Train as configured and write the model to `config.output`; returns that folder.

    `run/` there and `resume` are as in `trainer.train_listwise`.

    Raises before the first step: ValueError for data that cannot be trained on, FileExistsError
    where `run/` is another run's.
    """
    run = Run.begin(config, ARGUMENTS, resume=resume)
    arguments = run.arguments
    with open_base(config, arguments.device) as base:
        begin = Beginning.of(config, base)
        known = known_vectors(base, config.vectors) if config.mode == "frozen" else None
        train = read_training(config.data, base, known, seed=arguments.seed)
        dev = read_dev(config.dev, base, known, seed=arguments.seed)
        trainer = _trainer(config, arguments, base, begin, train, dev, known)
        digest = base.digest
        if known is None:
            base.close()  # a copy of it is trained
        return run.finish(
            trainer,
            digest=digest,
            examples=[len(part) for part in train],
            save=lambda model: _save(config, model, base, begin),
        )


@dataclass(frozen=True)
class Beginning:
    """What a reranker begins from, beside the encoder.

    first: the ResRank that a second stage goes on with; None in the first.
    folder, recipe: of the reranker's weights, and how it reads.
    width, scale: of its hidden states, and the mean length of its token embeddings.
    """

    first: Path | None
    folder: Path
    recipe: Recipe
    width: int
    scale: float

    @classmethod
    def of(cls, config: ResRankConfig, base: Encoder) -> Self:
        """Where the reranker's folder does not say how it reads a query, as a bare language
        model's does not, it reads as the encoder does. ValueError for one with an adapter."""
        first = resolve_folder(config.init_from)
        second_stage = read_system(first) == "resrank"
        if config.reranker_from is not None:
            folder = resolve_folder(config.reranker_from)
            says = any((folder / name).is_file() for name in (RECIPE_FILE, "modules.json"))
        elif second_stage:
            folder, says = first / RERANKER_FOLDER, True
        else:
            folder, says = base.weights_folder, False
        opened = Encoder.from_pretrained(
            folder,
            pooling=None if says else base.recipe.pooling,
            prompts=None if says else base.recipe.prompts,
            device=str(base.device),
        )
        with without_adapter(opened) as reranker:
            return cls(
                first=first if second_stage else None,
                folder=reranker.weights_folder,
                recipe=reranker.recipe,
                width=reranker.hidden_size,
                scale=token_length(reranker.loaded.transformer),
            )

    def head(self, config: ResRankConfig, dim: int) -> ResidualHead:
        """That of the first stage, or a new one."""
        if self.first is None:
            layout = config.layout or ResidualLayout()
            return ResidualHead(dim, self.width, layout, scale=self.scale, gates=config.gates)
        head = read_head(self.first, dim, self.width)
        if config.layout not in (None, head.layout):
            raise ValueError(
                f"layout: {config.init_from} was trained with {head.layout}; leave it out to go on"
            )
        return head


class ResRankInTraining(nn.Module):
    """The reranker and, where it learns too, the encoder's transformer."""

    def __init__(self, ranker: ListBackbone, encoder: nn.Module | None) -> None:
        super().__init__()
        self.ranker = ranker
        self.encoder = encoder

    def activation_checkpointing_enable(self, **options: Any) -> None:
        """As transformers' Trainer asks a model for it."""
        for transformer in filter(None, (self.ranker.transformer, self.encoder)):
            transformer.activation_checkpointing_enable(**options)  # type: ignore[operator]

    def gradient_checkpointing_enable(self, **options: Any) -> None:
        """The same, as older Trainers ask."""
        for transformer in filter(None, (self.ranker.transformer, self.encoder)):
            transformer.gradient_checkpointing_enable(**options)  # type: ignore[operator]

    def forward(
        self, batch: Mapping[str, Any], *, truncate_dim: int | None = None
    ) -> dict[str, Tensor]:
        """Vectors of a batch of `PassageCollator`, unit length: the encoder's queries [B, D] and
        documents [B, L, D], and those that rank, `better` [B, D] and `contextual` [B, L, D]."""
        if self.encoder is None:
            queries, documents = batch["query_vectors"], batch["document_vectors"]
        else:
            backbone = Backbone(self.encoder, truncate_dim=truncate_dim)
            queries = backbone(**batch["queries"])[:, 0]
            documents = backbone(**batch["documents"])[:, 0].view(*batch["relevance"].shape, -1)
        better, contextual = self.ranker(queries, documents, **batch["lists"])
        return {
            "queries": queries,
            "documents": documents,
            "better": better,
            "contextual": contextual,
        }


def resrank_loss(
    vectors: Mapping[str, Tensor], batch: Mapping[str, Any], config: ResRankConfig
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a batch, and its parts by name.

    RankNet on the cosines that rerank. The InfoNCE keeps the first stage good: in joint mode it
    compares the encoder's own vectors; frozen, those stay, and it compares the query's better one.
    """
    cosines = torch.einsum("bld,bd->bl", vectors["contextual"], vectors["better"])
    parts = {
        "info_nce": info_nce_loss(
            vectors["queries" if config.mode == "joint" else "better"],
            vectors["documents"].flatten(0, 1),
            batch["positives"],
            temperature=config.info_nce_temperature,
            mask=batch["counted"],
        ),
        "ranknet": ranknet_loss(
            cosines / config.ranknet_temperature, batch["relevance"], batch["listed"]
        ),
    }
    loss = config.info_nce_weight * parts["info_nce"] + config.ranknet_weight * parts["ranknet"]
    return loss, {name: part.detach() for name, part in parts.items()}


class ResRankTrainer(StageTrainer):
    """Minimises `resrank_loss`."""

    def __init__(
        self, *, config: ResRankConfig, truncate_dim: int | None, **arguments: Any
    ) -> None:
        super().__init__(config=config, **arguments)
        self.config = config
        self.truncate_dim = truncate_dim

    def step_loss(
        self, model: nn.Module, inputs: Mapping[str, Any]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        vectors = model(inputs, truncate_dim=self.truncate_dim)
        return resrank_loss(vectors, inputs, self.config)


def _trainer(
    config: ResRankConfig,
    arguments: TrainingArguments,
    base: Encoder,
    begin: Beginning,
    train: Sequence[Sequence[RankingExample]],
    dev: Sequence[DevSet],
    known: TextVectors | None,
) -> ResRankTrainer:
    ranker = ListBackbone(trainable_model(config, begin.folder), begin.head(config, base.dim))
    encoder = trainable_model(config, base.weights_folder) if known is None else None
    model = ResRankInTraining(ranker, encoder)
    # Of their own, because an encoder's belongs to its thread.
    texts = _tokenizer(base.weights_folder, base.recipe)
    live: TextEncoder = base if encoder is None else TextModel(encoder, texts)
    lists = ListModel(ranker, _tokenizer(begin.folder, begin.recipe), live)
    judge = ResidualReranker(lists, stored_vectors="trust")
    groups = groups_of(train)
    tell_small(groups, arguments.per_device_train_batch_size)
    dataset = PassageDataset(groups, config, seed=arguments.seed)
    readers = task_tokenizers(begin.folder, begin.recipe, train)
    return ResRankTrainer(
        config=config,
        truncate_dim=base.recipe.truncate_dim,
        batches=SourceBatches(
            [len(group) for group in groups],
            arguments.per_device_train_batch_size,
            balance=config.balance,
            seed=arguments.seed,
            dataset=dataset,
        ),
        dev=dev,
        measure=lambda part: part.measure(live, known, judge),
        model=model,
        args=arguments,
        data_collator=PassageCollator(
            lists.tokenizer,
            texts,
            pad_id=texts.pad_id,
            vectors=known,
            query_vectors=None if known is None else query_vectors(base, train),
            tasks=task_tokenizers(base.weights_folder, base.recipe, train),
            readers={
                task: ListModel(ranker, reader, live).tokenizer for task, reader in readers.items()
            },
        ),
    )


def _tokenizer(folder: Path, recipe: Recipe) -> TextTokenizer:
    tokenizer = load_tokenizer(folder)
    return TextTokenizer(tokenizer, plain_tokenizer(tokenizer), recipe)


def _save(config: ResRankConfig, model: Any, base: Encoder, begin: Beginning) -> None:
    folder, ranker = config.output, model.ranker
    save_merged(folder / RERANKER_FOLDER, ranker.transformer, begin.folder, begin.recipe)
    if model.encoder is not None:
        target = folder / ENCODER_FOLDER
        digest = save_merged(target, model.encoder, base.weights_folder, base.recipe)
        encoder = EncoderOf(base=".", digest=digest)
    else:
        encoder = EncoderOf(
            base=_name_of_encoder(begin.first, base, folder), digest=base.digest, recipe=base.recipe
        )
        if encoder.base == ".":
            base.save(folder / ENCODER_FOLDER)
    save_head(folder, ranker.head, ResRankRecipe(encoder=encoder, layout=ranker.head.layout))


def _name_of_encoder(first: Path | None, base: Encoder, folder: Path) -> str:
    """As `folder` names it; "." where the first stage has it inside, so that a copy goes along."""
    if first is None:
        return name_beside(base.name, folder)
    said = read_resrank_recipe(first).encoder.base
    return said if said == "." else name_beside(name_of_base(said, first), folder)
