"""What the stages share: arguments, the model in training, measuring, logging, the saved model."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import (
    EarlyStoppingCallback,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from e2rank_rag.distributed import gather_objects, process
from e2rank_rag.models.adapter import quiet_peft
from e2rank_rag.models.e2rank_folder import save_checkpoint
from e2rank_rag.models.encoder import Encoder
from e2rank_rag.models.files import follow_umask
from e2rank_rag.models.tokenizer_files import load_tokenizer
from e2rank_rag.models.weights import load_transformer, weights_digest
from e2rank_rag.recipe import Recipe
from e2rank_rag.tokenization import TextTokenizer, plain_tokenizer
from e2rank_rag.training.batches import SourceBatches
from e2rank_rag.training.config import EncoderConfig, StageConfig
from e2rank_rag.training.dev_sets import DevSet, RetrievalSet
from e2rank_rag.training.pairs import task_recipe
from e2rank_rag.training.vectors import TextVectors
from e2rank_rag.types import RankingExample

Measure = Callable[[Any], dict[str, float]]

RUN_FOLDER = "run"
METRICS_FILE = "metrics.jsonl"

LOADER_ARGUMENTS = (
    "dataloader_num_workers",
    "dataloader_pin_memory",
    "dataloader_prefetch_factor",
    "dataloader_multiprocessing_context",
    "dataloader_in_order",
)
"""Of TrainingArguments, for the loader of batches."""


def open_base(config: EncoderConfig, device: torch.device) -> Encoder:
    """The model that training begins from.

    Raises ValueError for one with a listwise adapter: no stage goes on with it.
    """
    base = Encoder.from_pretrained(
        config.init_from, pooling=config.pooling, prompts=config.prompts, device=str(device)
    )
    return without_adapter(base)


def without_adapter(base: Encoder) -> Encoder:
    """The same; closed, and a ValueError, where it has a listwise adapter."""
    if base.recipe.adapter is not None:
        base.close()
        raise ValueError(
            f"{base.name} has a listwise adapter already, which training does not go on "
            f"with: begin from its base, {base.recipe.adapter.base!r} ({base.weights_folder})"
        )
    return base


def known_vectors(base: Encoder, folder: Path | None) -> TextVectors:
    """Vectors of frozen documents; in a folder, if there is one, they stay for the next run."""
    cache = None if folder is None else folder / f"{base.fingerprint}.npz"
    return TextVectors(base.dim, cache=cache)


def query_vectors(
    base: Encoder, train: Sequence[Sequence[RankingExample]]
) -> dict[str | None, TextVectors]:
    """Of the queries to train on, by task, whose instruction a query may have."""
    queries: dict[str | None, list[str]] = {}
    for example in (example for part in train for example in part):
        queries.setdefault(example.task, []).append(example.query)
    vectors = {task: TextVectors(base.dim) for task in queries}
    for task, texts in queries.items():
        with base.with_recipe(task_recipe(base.recipe, task)) as instructed:
            vectors[task].encode(texts, instructed.encode_queries)
    return vectors


def task_tokenizers(
    folder: Path, recipe: Recipe, train: Sequence[Sequence[RankingExample]]
) -> dict[str, TextTokenizer]:
    """For each task of the examples, one that gives its queries and prompts their instructions."""
    tokenizer = load_tokenizer(folder)
    plain = plain_tokenizer(tokenizer)
    tasks = {example.task for part in train for example in part}
    return {
        task: TextTokenizer(tokenizer, plain, task_recipe(recipe, task))
        for task in sorted(filter(None, tasks))
    }


class StageTrainer(Trainer):
    """Trains on batches of one source each and measures dev sets; a stage adds its loss.

    measure: a dev set's figures by name, of the model as it is.
    decides: names of the figures whose mean over the dev sets decides which state is kept, and when
        to stop; None: of all.
    """

    def __init__(
        self,
        *,
        config: StageConfig,
        batches: SourceBatches,
        dev: Sequence[DevSet | RetrievalSet],
        measure: Measure,
        decides: Sequence[str] | None = None,
        **arguments: Any,
    ) -> None:
        callbacks: list[TrainerCallback] = [
            MetricsFile(config.output / RUN_FOLDER / METRICS_FILE),
            CheckpointModes(),
        ]
        if dev and config.patience is not None:
            callbacks.append(EarlyStoppingCallback(early_stopping_patience=config.patience))
        super().__init__(
            train_dataset=batches.dataset,
            # `evaluate` measures the dev sets; the trainer only wants to see that there are any.
            eval_dataset=batches.dataset if dev else None,
            callbacks=callbacks,
            **arguments,
        )
        self.batches = batches
        self.dev = dev
        self.measure = measure
        self.decides = decides
        # The loss is a mean already: the trainer divides it by the accumulation steps.
        self.model_accepts_loss_kwargs = False
        self._parts: dict[str, list[Tensor]] = {}

    def get_train_dataloader(self) -> DataLoader[Any]:
        options: dict[str, Any] = {
            name.removeprefix("dataloader_"): getattr(self.args, name)
            for name in LOADER_ARGUMENTS
            if hasattr(self.args, name)  # some are of newer transformers only
        }
        loader: DataLoader[Any] = DataLoader(
            self.batches.dataset,
            batch_sampler=self.batches,
            collate_fn=self.data_collator,
            **options,
        )
        prepared: DataLoader[Any] = self.accelerator.prepare(loader)
        return prepared

    def step_loss(
        self, model: nn.Module, inputs: Mapping[str, Any]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch, and detached scalars whose means are logged beside it."""
        raise NotImplementedError

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        loss, parts = self.step_loss(model, inputs)
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
        measured = [self.measure(part) for part in self.dev]
        names = list(measured[0]) if measured else []
        metrics = {
            f"{metric_key_prefix}_{part.name}_{name}": value
            for part, values in zip(self.dev, measured, strict=True)
            for name, value in values.items()
        }
        means = {
            name: math.fsum(values[name] for values in measured) / len(measured) for name in names
        }
        metrics |= {f"{metric_key_prefix}_{name}": mean for name, mean in means.items()}
        deciding = [means[name] for name in (names if self.decides is None else self.decides)]
        metrics[f"{metric_key_prefix}_mean"] = math.fsum(deciding) / max(len(deciding), 1)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def _save_rng_state(self, output_dir: str) -> None:
        """That of each process, by the first one, which alone writes a checkpoint."""
        with TemporaryDirectory(prefix="e2rank-") as own:
            super()._save_rng_state(own)
            states = gather_objects({path.name: path.read_bytes() for path in Path(own).iterdir()})
        if process() == 0:
            for name, state in ((n, s) for part in states for n, s in part.items()):
                (Path(output_dir) / name).write_bytes(state)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            for name, values in self._parts.items():
                logs[name] = float(torch.stack(values).mean())
            self._parts.clear()
        super().log(logs, start_time)


class CheckpointModes(TrainerCallback):
    """The weights of a checkpoint are readable for whoever may read the other files of the run."""

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
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
        if state.is_world_process_zero:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": state.global_step, **(logs or {})}) + "\n")


def trainable_model(config: StageConfig, weights: Path) -> PreTrainedModel | PeftModel:
    """The transformer of a folder in float32, with LoRA layers where the configuration has them."""
    model = load_transformer(weights, dtype=torch.float32)
    for name, parameter in model.named_parameters():
        if "pooler" in name:  # nothing reads it
            parameter.requires_grad_(False)
    left_alone = [name for name, _ in model.named_modules() if "pooler" in name]
    return with_options(model, config, left_alone=left_alone)


def with_options(
    model: PreTrainedModel,
    config: StageConfig,
    *,
    left_alone: Sequence[str] = (),
    heads: Sequence[str] = (),
) -> PreTrainedModel | PeftModel:
    """The dropout of the configuration, and LoRA layers where it has them.

    left_alone: modules without LoRA layers. heads: those that are trained whole beside them.
    """
    if config.dropout is not None and not _set_dropout(model, config.dropout) and config.dropout:
        raise ValueError(f"dropout: {type(model).__name__} has none; leave it out")
    if config.lora is None:
        return model
    targets = config.lora.targets
    options = LoraConfig(
        r=config.lora.rank,
        lora_alpha=config.lora.alpha,
        lora_dropout=config.lora.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        exclude_modules=list(left_alone),
        modules_to_save=list(heads) or None,
    )
    with quiet_peft():
        adapted: PeftModel = get_peft_model(model, options)
    return adapted


def _set_dropout(model: nn.Module, share: float) -> bool:
    """Whether there is any dropout to set."""
    found = False
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = share
            found = True
        for name in ("dropout", "attention_dropout"):  # in attention, numbers in place of modules
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, share)
                found = True
    return found


def save_merged(folder: Path, model: Any, weights: Path, recipe: Recipe) -> str:
    """Write the model, LoRA layers merged in, with the tokenizer of the folder `weights`; returns
    the digest of the weights."""
    if isinstance(model, PeftModel):
        model = model.merge_and_unload(safe_merge=True)
    save_checkpoint(folder, model, load_tokenizer(weights), recipe)
    return weights_digest(model)
