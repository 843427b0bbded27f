"""What a stage of training adds to the training loop."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from torch import Tensor, nn
from transformers import TrainingArguments

from e2rank_rag.training.config import StageConfig
from e2rank_rag.training.lists import TrainingList
from e2rank_rag.types import RankingExample

C = TypeVar("C", bound=StageConfig)


class TrainingData(Protocol):
    """Turns examples into batches. The data loader's workers get copies, so it holds no model."""

    def sample(self, example: RankingExample, draw: random.Random) -> TrainingList:
        """The list of an example for one epoch, whose chance is `draw` alone."""
        ...

    def collate(self, lists: Sequence[TrainingList]) -> dict[str, Any]:
        """The tensors of a batch, as the stage's `step_loss` reads them."""
        ...


class Stage(ABC, Generic[C]):
    """One stage of training, for the loop of `loop.run_stage`.

    defaults: arguments of the trainer, which those of the configuration replace.
    decides: names of the figures whose mean over the dev sets decides which checkpoint is kept and
        when to stop; None: all of them.

    `open` sets the other attributes. model: the module to train. digest: of the weights that
    training begins from. examples: those of each source. groups: what may share a batch. dev: the
    dev sets. data: makes the batches.
    """

    defaults: ClassVar[Mapping[str, Any]] = {}
    decides: ClassVar[Sequence[str] | None] = None

    model: nn.Module
    digest: str
    examples: Sequence[Sequence[RankingExample]]
    groups: Sequence[Sequence[RankingExample]]
    dev: Sequence[Any]
    data: TrainingData

    def __init__(self, config: C, arguments: TrainingArguments) -> None:
        self.config = config
        self.arguments = arguments

    @property
    def together(self) -> int:
        """Number of batches in a row that are compared as one, see `lists.SourceBatches`."""
        return 1

    @property
    def facts(self) -> dict[str, Any]:
        """What `run.json` holds in addition to what every stage records, as JSON values."""
        return {}

    @abstractmethod
    def open(self) -> AbstractContextManager[None]:
        """Open the models and read the data; at the end, close the models.

        Raises ValueError or OSError for a base and for data that cannot be trained on.
        """

    @abstractmethod
    def step_loss(
        self, model: nn.Module, batch: Mapping[str, Any]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch, and detached scalars that are logged beside it, as means.

        model: the one to train, perhaps wrapped by the trainer.
        """

    @abstractmethod
    def measure(self, dev: Any) -> dict[str, float]:
        """The figures of a dev set, by name, with the weights as they are now."""

    @abstractmethod
    def save(self, model: Any) -> None:
        """Write the trained model to `config.output`."""
