"""The training loop of every stage, on transformers' Trainer.

It has the run folder, resuming, early stopping, dev measurement and saving; a `stage.Stage` adds
its data and its loss.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import (
    EarlyStoppingCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from e2rank_rag.distributed import gather_objects
from e2rank_rag.models.files import follow_umask
from e2rank_rag.training.config import StageConfig
from e2rank_rag.training.lists import ListDataset, SourceBatches, warn_of_small
from e2rank_rag.training.run_folder import RunFolder
from e2rank_rag.training.stage import Stage

LOADER_ARGUMENTS = (
    "dataloader_num_workers",
    "dataloader_pin_memory",
    "dataloader_prefetch_factor",
    "dataloader_multiprocessing_context",
    "dataloader_in_order",
)
"""The fields of TrainingArguments that the data loader takes."""


def run_stage(kind: type[Stage[Any]], config: StageConfig, *, resume: bool = False) -> Path:
    """Train one stage; see `training.train`."""
    folder = RunFolder.begin(config, kind.defaults, resume=resume)
    stage = kind(config, folder.arguments)
    with stage.open():
        trainer = StageTrainer(stage, folder)
        examples = [len(part) for part in stage.examples]
        folder.check_alike(stage.digest, examples)
        if folder.writes:
            folder.describe(stage.digest, examples, **stage.facts)
        with folder.checkpoint() as checkpoint:
            trainer.train(resume_from_checkpoint=checkpoint)
        if folder.writes:
            stage.save(trainer.accelerator.unwrap_model(trainer.model))
            folder.plot()
    return config.output


class StageTrainer(Trainer):
    """Trains the model of a stage on its batches, and measures its dev sets."""

    def __init__(self, stage: Stage[Any], folder: RunFolder) -> None:
        config, arguments = stage.config, folder.arguments
        size = arguments.per_device_train_batch_size
        warn_of_small(stage.groups, size * stage.together)
        self.stage = stage
        self.folder = folder
        self.batches = SourceBatches(
            [len(group) for group in stage.groups],
            size,
            balance=config.balance,
            seed=arguments.seed,
            together=stage.together,
        )
        self.lists = dataset = ListDataset(stage.groups, stage.data.sample, seed=arguments.seed)
        callbacks: list[TrainerCallback] = [CheckpointModes()]
        if folder.writes:
            callbacks.insert(0, MetricsFile(folder.metrics))
        if stage.dev and config.patience is not None:
            callbacks.append(EarlyStoppingCallback(early_stopping_patience=config.patience))
        super().__init__(
            model=stage.model,
            args=arguments,
            data_collator=stage.data.collate,
            train_dataset=dataset,
            # `evaluate` measures the dev sets; the trainer only asks whether there are any.
            eval_dataset=dataset if stage.dev else None,
            callbacks=callbacks,
        )
        # The loss is a mean already: the trainer divides it by the accumulation steps.
        self.model_accepts_loss_kwargs = False
        self._parts: dict[str, list[Tensor]] = {}

    def get_train_dataloader(self) -> DataLoader[Any]:
        """A loader of the stage's batches, shared out among the processes."""
        options: dict[str, Any] = {
            name.removeprefix("dataloader_"): getattr(self.args, name)
            for name in LOADER_ARGUMENTS
            if hasattr(self.args, name)  # older transformers lack some
        }
        loader: DataLoader[Any] = DataLoader(
            self.lists,
            batch_sampler=self.batches,
            collate_fn=self.data_collator,
            **options,
        )
        prepared: DataLoader[Any] = self.accelerator.prepare(loader)
        return prepared

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The stage's loss of a batch; its parts are kept for the log."""
        loss, parts = self.stage.step_loss(model, inputs)
        for name, part in parts.items():
            self._parts.setdefault(name, []).append(part)
        return (loss, {}) if return_outputs else loss

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """The figures of each dev set, and their means; `eval_mean` decides when to stop."""
        measured = [self.stage.measure(part) for part in self.stage.dev]
        names = list(measured[0]) if measured else []
        metrics = {
            f"{metric_key_prefix}_{part.name}_{name}": value
            for part, values in zip(self.stage.dev, measured, strict=True)
            for name, value in values.items()
        }
        means = {
            name: math.fsum(values[name] for values in measured) / len(measured) for name in names
        }
        metrics |= {f"{metric_key_prefix}_{name}": mean for name, mean in means.items()}
        decides = self.stage.decides
        deciding = [means[name] for name in (names if decides is None else decides)]
        metrics[f"{metric_key_prefix}_mean"] = math.fsum(deciding) / max(len(deciding), 1)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with the means of the loss's parts beside a loss."""
        if "loss" in logs:
            for name, values in self._parts.items():
                logs[name] = float(torch.stack(values).mean())
            self._parts.clear()
        super().log(logs, start_time)

    def _save_rng_state(self, output_dir: str) -> None:
        """The first process writes the random states of all, as it alone writes checkpoints."""
        with TemporaryDirectory(prefix="e2rank-") as own:
            super()._save_rng_state(own)
            states = gather_objects({path.name: path.read_bytes() for path in Path(own).iterdir()})
        if self.folder.writes:
            for name, state in ((n, s) for part in states for n, s in part.items()):
                (Path(output_dir) / name).write_bytes(state)


class CheckpointModes(TrainerCallback):
    """Gives the weights of a checkpoint the file modes of the run folder's other files."""

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Follow the umask."""
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        if args.should_save and folder.is_dir():
            follow_umask(folder)


class MetricsFile(TrainerCallback):
    """Appends everything that is logged to a file, one JSON object a line."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Append one line."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": state.global_step, **(logs or {})}) + "\n")
