"""ResRank: encoder and reranker trained together, or the reranker over vectors that stay."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from torch import Tensor, nn

from e2rank_rag.list_tokenization import ListTokenizer
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
from e2rank_rag.recipe import EncoderOf, Recipe, ResidualLayout, ResRankRecipe
from e2rank_rag.rerankers import ResidualReranker
from e2rank_rag.tokenization import TextTokenizer
from e2rank_rag.training.base_model import (
    open_base,
    save_merged,
    task_tokenizers,
    trainable_model,
    without_adapter,
)
from e2rank_rag.training.config import ResRankConfig
from e2rank_rag.training.lists import TrainingList, scored_tensors, task_of
from e2rank_rag.training.objective import list_loss
from e2rank_rag.training.relevance import relevant_texts, scored_places
from e2rank_rag.training.stages.vector_lists import VectorListStage
from e2rank_rag.training.vectors import FrozenVectors
from e2rank_rag.types import RankingExample


class ResRankStage(VectorListStage[ResRankConfig]):
    """Trains a ResRank."""

    @contextmanager
    def open(self) -> Iterator[None]:
        """In joint mode the base is closed before training: a copy of its weights is trained."""
        config = self.config
        with open_base(config, self.arguments.device) as base:
            self.begin = begin = Beginning.of(config, base)
            tokenizers, frozen = self.read(base, frozen=config.mode == "frozen")
            backbone = ListBackbone(
                trainable_model(config, begin.folder), begin.head(config, base.dim)
            )
            encoder = trainable_model(config, base.weights_folder) if frozen is None else None
            self.model = ResRankInTraining(backbone, encoder)
            self.encoder = base if encoder is None else TextModel(encoder, tokenizers[None])
            readers = {
                task: ListModel(backbone, tokenizer, self.encoder)
                for task, tokenizer in task_tokenizers(
                    begin.folder, begin.recipe, self.examples
                ).items()
            }
            self.reranker = ResidualReranker(readers[None], stored_vectors="trust")
            self.data = ResRankData(
                config,
                tokenizers,
                {task: reader.tokenizer for task, reader in readers.items()},
                frozen,
            )
            if frozen is None:
                base.close()
            yield

    def step_loss(
        self, model: nn.Module, batch: Mapping[str, Any]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `resrank_loss`."""
        vectors = model(batch, truncate_dim=self.base.recipe.truncate_dim)
        return resrank_loss(vectors, batch, self.config)

    def save(self, model: Any) -> None:
        """Reranker and head, and the encoder or its name."""
        folder, base, begin = self.config.output, self.base, self.begin
        ranker = model.ranker
        save_merged(folder / RERANKER_FOLDER, ranker.transformer, begin.folder, begin.recipe)
        if model.encoder is not None:
            target = folder / ENCODER_FOLDER
            digest = save_merged(target, model.encoder, base.weights_folder, base.recipe)
            encoder = EncoderOf(base=".", digest=digest)
        else:
            name = _name_of_encoder(begin.first, base, folder)
            encoder = EncoderOf(base=name, digest=base.digest, recipe=base.recipe)
            if name == ".":
                base.save(folder / ENCODER_FOLDER)
        save_head(folder, ranker.head, ResRankRecipe(encoder=encoder, layout=ranker.head.layout))


@dataclass
class ResRankData:
    """Each example becomes a list of documents in their order, or shuffled.

    tokenizers, readers: the encoder's and the reranker's tokenizers, by task.
    frozen: the vectors in frozen mode; None: queries and documents are encoded in each step.
    """

    config: ResRankConfig
    tokenizers: Mapping[str | None, TextTokenizer]
    readers: Mapping[str | None, ListTokenizer]
    frozen: FrozenVectors | None = None

    def sample(self, example: RankingExample, draw: random.Random) -> TrainingList:
        """The documents are the same in each epoch; a shuffled order is drawn."""
        places, chosen = scored_places(example, self.config.list_size, self.config.positive)
        positive = places[chosen]
        # In their order: the place of a document must not tell its label.
        places.sort()
        order = self.config.order
        if order == "shuffled" or (order == "mixed" and draw.random() < 0.5):
            draw.shuffle(places)
        return TrainingList(
            query=example.query,
            documents=tuple(example.documents[place] for place in places),
            labels=tuple(example.labels[place] for place in places),
            positive=places.index(positive),
            relevant=relevant_texts(example, best=self.config.positive == "highest"),
            task=example.task,
        )

    def collate(self, lists: Sequence[TrainingList]) -> dict[str, Any]:
        """What `lists.scored_tensors` gives, and `lists`: the tensors of `ListTokenizer`."""
        reader = self.readers[task_of(lists)]
        tokens = reader.lists(
            [each.query for each in lists], [len(each.documents) for each in lists]
        )
        return {
            "lists": reader.collate(tokens),
            **scored_tensors(lists, self.tokenizers, self.frozen),
        }


@dataclass(frozen=True)
class Beginning:
    """The weights that the reranker begins from.

    first: the ResRank that a second stage goes on with; None in the first stage.
    folder, recipe: the folder of its weights, and how it reads text.
    width: dimensions of its hidden states. scale: the mean length of its token embeddings.
    """

    first: Path | None
    folder: Path
    recipe: Recipe
    width: int
    scale: float

    @classmethod
    def of(cls, config: ResRankConfig, base: Encoder) -> Self:
        """Find the reranker's weights; ValueError if they have a listwise adapter.

        A folder that does not say how it reads a query, such as a bare language model's, gets the
        encoder's pooling and prompts.
        """
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
        """The head of the first stage, or a new one."""
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
    """The reranker and, in joint mode, the encoder's transformer."""

    def __init__(self, ranker: ListBackbone, encoder: nn.Module | None) -> None:
        super().__init__()
        self.ranker = ranker
        self.encoder = encoder

    def activation_checkpointing_enable(self, **options: Any) -> None:
        """Save memory in both transformers, when the Trainer asks for it."""
        for transformer in filter(None, (self.ranker.transformer, self.encoder)):
            transformer.activation_checkpointing_enable(**options)  # type: ignore[operator]

    def gradient_checkpointing_enable(self, **options: Any) -> None:
        """The same, under the name in older releases of transformers."""
        for transformer in filter(None, (self.ranker.transformer, self.encoder)):
            transformer.gradient_checkpointing_enable(**options)  # type: ignore[operator]

    def forward(
        self, batch: Mapping[str, Any], *, truncate_dim: int | None = None
    ) -> dict[str, Tensor]:
        """Unit vectors of a batch of `ResRankData`.

        queries [B, D], documents [B, L, D]: the encoder's. better [B, D], contextual [B, L, D]: the
        vectors that rank.
        """
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
    """The loss of a batch, and its parts by name. vectors: see `ResRankInTraining.forward`.

    RankNet orders the cosines that rerank. The InfoNCE trains retrieval: in joint mode it compares
    the encoder's own query vectors; in frozen mode those stay, and it compares the better ones.
    """
    return list_loss(
        batch,
        config,
        queries=vectors["queries" if config.mode == "joint" else "better"],
        documents=vectors["documents"],
        better=vectors["better"],
        contextual=vectors["contextual"],
    )


def _name_of_encoder(first: Path | None, base: Encoder, folder: Path) -> str:
    """The encoder's name as `folder` has it; "." if the first stage has a copy inside."""
    if first is None:
        return name_beside(base.name, folder)
    name = read_resrank_recipe(first).encoder.base
    return name if name == "." else name_beside(name_of_base(name, first), folder)
