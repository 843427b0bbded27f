"""The part of the stages that rank lists by vectors: reading data and measuring dev sets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from e2rank_rag.models.encoder import Encoder
from e2rank_rag.rerankers import BaseReranker
from e2rank_rag.tokenization import TextTokenizer
from e2rank_rag.training.base_model import document_vectors, frozen_vectors, task_tokenizers
from e2rank_rag.training.config import ListConfig
from e2rank_rag.training.dev_sets import DevSet
from e2rank_rag.training.lists import groups_of
from e2rank_rag.training.sources import read_dev, read_training
from e2rank_rag.training.stage import Stage
from e2rank_rag.training.vectors import FrozenVectors, TextVectors
from e2rank_rag.types import TextEncoder

C = TypeVar("C", bound=ListConfig)


class VectorListStage(Stage[C]):
    """A stage whose reranker compares vectors.

    base: the encoder that training begins from. known: the vectors of documents that stay; None if
    they are trained. encoder, reranker: the model in training as it will serve.
    """

    defaults = {  # noqa: RUF012 - declared in Stage
        "learning_rate": 5e-6,
        "warmup_steps": 0.03,
        "per_device_train_batch_size": 8,
    }
    """E2Rank's values (arXiv 2510.22733, appendix C). Those of ResRank are not published."""

    base: Encoder
    known: TextVectors | None
    encoder: TextEncoder
    reranker: BaseReranker

    def read(
        self, base: Encoder, *, frozen: bool
    ) -> tuple[Mapping[str | None, TextTokenizer], FrozenVectors | None]:
        """Read the data; returns the base's tokenizers by task, and the vectors that stay."""
        config, seed = self.config, self.arguments.seed
        self.base, self.digest = base, base.digest
        self.known = document_vectors(base, config.vectors) if frozen else None
        self.examples = read_training(config.data, base, self.known, seed=seed)
        self.dev = read_dev(config.dev, base, self.known, seed=seed)
        self.groups = groups_of(self.examples)
        tokenizers = task_tokenizers(base.weights_folder, base.recipe, self.examples)
        if self.known is None:
            return tokenizers, None
        return tokenizers, frozen_vectors(base, self.known, self.examples)

    def measure(self, dev: DevSet) -> dict[str, float]:
        """The candidates by plain cosine, and reranked."""
        return dev.measure(self.encoder, self.known, self.reranker)
