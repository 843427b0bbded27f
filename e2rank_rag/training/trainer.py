"""Stage 2: train a listwise model, joint or as an adapter, on transformers' Trainer.

folder = train_listwise(read_config("stage2-adapter.yaml"))
encoder = Encoder.from_pretrained(folder)
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
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

from e2rank_rag.models.adapter import quiet_peft
from e2rank_rag.models.backbone import Backbone
from e2rank_rag.models.checkpoint import (
    load_tokenizer,
    load_transformer,
    save_adapter,
    save_checkpoint,
)
from e2rank_rag.models.encoder import Encoder
from e2rank_rag.recipe import Recipe
from e2rank_rag.tokenization import TextTokenizer, pad_id, plain_tokenizer
from e2rank_rag.training.batches import ListCollator, ListDataset, SourceBatches
from e2rank_rag.training.config import ListwiseConfig
from e2rank_rag.training.live import LiveEncoder
from e2rank_rag.training.objective import listwise_loss
from e2rank_rag.training.record import describe_run, plot_run
from e2rank_rag.training.sources import DevSet, TextVectors, read_dev, read_training
from e2rank_rag.types import RankingExample

logger = logging.getLogger(__name__)

RUN_FOLDER = "run"
METRICS_FILE = "metrics.jsonl"


def train_listwise(config: ListwiseConfig, *, resume: bool = False) -> Path:
    """Train as configured and write the model to `config.output`; returns that folder.

    Beside the model, `run/` holds the configuration, versions and hashes of the data
    (`run.json`), everything that was logged (`metrics.jsonl`), a plot and the checkpoints.
    resume: go on from the newest checkpoint there, with the batches that would have come.

    Raises ValueError for data that cannot be trained on, before the first step.
    """
    run = config.output / RUN_FOLDER
    run.mkdir(parents=True, exist_ok=True)
    arguments = _arguments(config, run)
    torch.manual_seed(arguments.seed)
    with Encoder.from_pretrained(config.init_from, device=str(arguments.device)) as base:
        base = base.with_recipe(_recipe(base.recipe, config))
        try:
            known = TextVectors(base.dim) if config.mode == "adapter" else None
            train = read_training(config.data, base, known, seed=arguments.seed)
            dev = read_dev(config.dev, base, known, seed=arguments.seed)
            describe_run(run / "run.json", config, base, [len(part) for part in train])
            trainer = _trainer(config, arguments, base, train, dev, known)
            trainer.train(resume_from_checkpoint=resume or None)
            _save(config, trainer, base)
        finally:
            base.close()
    plot_run(run / METRICS_FILE, run / "metrics.png")
    return config.output


class ListTrainer(Trainer):
    """Minimises `listwise_loss` over batches of one source each; measures dev sets by reranking."""

    def __init__(
        self,
        *,
        config: ListwiseConfig,
        recipe: Recipe,
        batches: SourceBatches,
        live: LiveEncoder,
        dev: Sequence[DevSet],
        known: TextVectors | None,
        **arguments: Any,
    ) -> None:
        super().__init__(**arguments)
        self.config = config
        self.recipe = recipe
        self.batches = batches
        self.live = live
        self.dev = dev
        self.known = known
        # The loss is a mean already: the trainer divides it by the accumulation steps.
        self.model_accepts_loss_kwargs = False
        self._parts: dict[str, list[Tensor]] = {}

    def get_train_dataloader(self) -> DataLoader[Any]:
        loader: DataLoader[Any] = DataLoader(
            self.batches.dataset, batch_sampler=self.batches, collate_fn=self.data_collator
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
        backbone = Backbone(model, truncate_dim=self.recipe.truncate_dim)
        loss, parts = listwise_loss(
            lambda tokens: backbone(**tokens)[:, 0],
            inputs,
            self.config,
            self.recipe.query_weight,
        )
        for name, part in parts.items():
            self._parts.setdefault(name, []).append(part)
        return (loss, {}) if return_outputs else loss

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """nDCG@10 of each dev set, plain and reranked; `eval_mean` decides when to stop."""
        metrics: dict[str, float] = {}
        for part in self.dev:
            for name, value in part.measure(self.live, self.known).items():
                metrics[f"{metric_key_prefix}_{part.name}_{name}"] = value
        for name in ("retrieve", "rerank"):
            metrics[f"{metric_key_prefix}_{name}"] = math.fsum(
                value for key, value in metrics.items() if key.endswith(f"_{name}")
            ) / max(len(self.dev), 1)
        metrics[f"{metric_key_prefix}_mean"] = (
            metrics[f"{metric_key_prefix}_retrieve"] + metrics[f"{metric_key_prefix}_rerank"]
        ) / 2
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            for name, values in self._parts.items():
                logs[name] = float(torch.stack(values).mean())
            self._parts.clear()
        super().log(logs, start_time)


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


def _arguments(config: ListwiseConfig, run: Path) -> TrainingArguments:
    """The paper's values (arXiv 2510.22733, appendix C), under those of the configuration."""
    measured: dict[str, Any] = {
        "eval_strategy": "steps",
        "eval_steps": 0.1,
        "save_strategy": "steps",
        "save_steps": 0.1,
        "save_total_limit": 2,
        "load_best_model_at_end": True,
        "metric_for_best_model": "mean",
        "greater_is_better": True,
    }
    stated: dict[str, Any] = {
        **(measured if config.dev else {}),
        "learning_rate": 5e-6,
        "warmup_steps": 0.03,
        "num_train_epochs": 1,
        "per_device_train_batch_size": 8,
        "logging_steps": 10,
        "report_to": "none",
        "dataloader_pin_memory": torch.cuda.is_available(),
        **config.trainer,
    }
    reserved = sorted({"output_dir", "remove_unused_columns"} & set(config.trainer))
    if reserved:
        raise ValueError(f"trainer.{reserved[0]} is set by the training itself; use `output`")
    try:
        return TrainingArguments(
            output_dir=str(run / "checkpoints"), remove_unused_columns=False, **stated
        )
    except TypeError as error:
        raise ValueError(f"trainer: {error}") from error


def _recipe(base: Recipe, config: ListwiseConfig) -> Recipe:
    options = config.prompt
    budget = base.listwise.model_copy(
        update={
            "depth": max(options.depths),
            **{
                name: getattr(options, name)
                for name in ("document_tokens", "max_tokens")
                if getattr(options, name) is not None
            },
        }
    )
    weight = base.query_weight if config.query_weight is None else config.query_weight
    return base.model_copy(update={"listwise": budget, "query_weight": weight, "adapter": None})


def _trainer(
    config: ListwiseConfig,
    arguments: TrainingArguments,
    base: Encoder,
    train: Sequence[Sequence[RankingExample]],
    dev: Sequence[DevSet],
    known: TextVectors | None,
) -> ListTrainer:
    model = _model(config, base)
    folder_tokenizer = load_tokenizer(base.weights_folder)
    padding = pad_id(folder_tokenizer)
    # Its own, because the encoder's belongs to the encoder's thread.
    tokenizer = TextTokenizer(folder_tokenizer, plain_tokenizer(folder_tokenizer), base.recipe)
    queries = None if known is None else _query_vectors(base, train)
    dataset = ListDataset(train, config, seed=arguments.seed)
    sizes = [len(part) for part in train]
    batches = SourceBatches(
        sizes,
        arguments.per_device_train_batch_size,
        balance=config.balance,
        seed=arguments.seed,
        dataset=dataset,
    )
    live = LiveEncoder(
        model,
        tokenizer,
        base.recipe,
        pad_id=padding,
        base=base if config.mode == "adapter" else None,
    )
    metrics = config.output / RUN_FOLDER / METRICS_FILE
    callbacks: list[TrainerCallback] = [MetricsFile(metrics)]
    if dev and config.patience is not None:
        callbacks.append(EarlyStoppingCallback(early_stopping_patience=config.patience))
    return ListTrainer(
        config=config,
        recipe=base.recipe,
        batches=batches,
        live=live,
        dev=dev,
        known=known,
        model=model,
        args=arguments,
        train_dataset=dataset,
        # `evaluate` measures the dev sets; the trainer only wants to see that there are any.
        eval_dataset=dataset if dev else None,
        data_collator=ListCollator(
            tokenizer,
            pad_id=padding,
            vectors=None if known is None else (known.rows, known.values),
            query_vectors=None if queries is None else (queries.rows, queries.values),
        ),
        callbacks=callbacks,
    )


def _model(config: ListwiseConfig, base: Encoder) -> PreTrainedModel | PeftModel:
    model = load_transformer(base.weights_folder, dtype=torch.float32)
    for name, parameter in model.named_parameters():
        if "pooler" in name:  # nothing reads it
            parameter.requires_grad_(False)
    if config.dropout is not None:
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = config.dropout
    if config.lora is None:
        return model
    targets = config.lora.targets
    options = LoraConfig(
        r=config.lora.rank,
        lora_alpha=config.lora.alpha,
        lora_dropout=config.lora.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        exclude_modules=[name for name, _ in model.named_modules() if "pooler" in name],
    )
    with quiet_peft():
        adapted: PeftModel = get_peft_model(model, options)
    return adapted


def _query_vectors(base: Encoder, train: Sequence[Sequence[RankingExample]]) -> TextVectors:
    queries = list(dict.fromkeys(example.query for part in train for example in part))
    vectors = TextVectors(base.dim)
    vectors.add(queries, base.encode_queries(queries))
    return vectors


def _save(config: ListwiseConfig, trainer: ListTrainer, base: Encoder) -> None:
    if not trainer.is_world_process_zero():
        return
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    if config.mode == "adapter":
        save_adapter(config.output, model, base.recipe, base=base.name, digest=base.digest)
        return
    if isinstance(model, PeftModel):
        model = model.merge_and_unload(safe_merge=True)
    save_checkpoint(config.output, model, load_tokenizer(base.weights_folder), base.recipe)
