"""Stage 2: train a listwise model, joint or as an adapter, on transformers' Trainer.

folder = train_listwise(read_config("stage2-adapter.yaml"))
encoder = Encoder.from_pretrained(folder)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import TrainingArguments

from e2rank_rag.models.e2rank import Backbone
from e2rank_rag.models.e2rank_folder import save_adapter
from e2rank_rag.models.encoder import Encoder
from e2rank_rag.models.tokenizer_files import load_tokenizer
from e2rank_rag.recipe import Recipe
from e2rank_rag.rerankers import ListwiseReranker
from e2rank_rag.tokenization import TextTokenizer, pad_id, plain_tokenizer
from e2rank_rag.training.batches import (
    ListCollator,
    ListDataset,
    ListFeedback,
    SourceBatches,
    groups_of,
    tell_small,
)
from e2rank_rag.training.config import ListwiseConfig
from e2rank_rag.training.dev_sets import DevSet
from e2rank_rag.training.live import LiveEncoder
from e2rank_rag.training.objective import listwise_loss
from e2rank_rag.training.run import Run
from e2rank_rag.training.runs import (
    StageTrainer,
    known_vectors,
    open_base,
    query_vectors,
    save_merged,
    task_tokenizers,
    trainable_model,
)
from e2rank_rag.training.sources import read_dev, read_training
from e2rank_rag.training.vectors import TextVectors
from e2rank_rag.types import RankingExample

ARGUMENTS: Mapping[str, Any] = {
    "learning_rate": 5e-6,
    "warmup_steps": 0.03,
    "per_device_train_batch_size": 8,
}
"""The paper's values (arXiv 2510.22733, appendix C), under those of the configuration."""


def train_listwise(config: ListwiseConfig, *, resume: bool = False) -> Path:
    """Train as configured and write the model to `config.output`; returns that folder.

    Beside the model, `run/` holds the configuration, versions and hashes of the data
    (`run.json`), everything that was logged (`metrics.jsonl`), a plot and the checkpoints.
    resume: go on from the newest checkpoint there, with the batches that would have come.

    Raises before the first step: ValueError for data that cannot be trained on, FileExistsError
    where `run/` is another run's.
    """
    run = Run.begin(config, ARGUMENTS, resume=resume)
    arguments = run.arguments
    with open_base(config, arguments.device) as base:
        base = base.with_recipe(_recipe(base.recipe, config))
        try:
            known = known_vectors(base, config.vectors) if config.mode == "adapter" else None
            train = read_training(config.data, base, known, seed=arguments.seed)
            dev = read_dev(config.dev, base, known, seed=arguments.seed)
            return run.finish(
                _trainer(config, arguments, base, train, dev, known),
                digest=base.digest,
                examples=[len(part) for part in train],
                save=lambda model: _save(config, model, base),
            )
        finally:
            base.close()


class ListTrainer(StageTrainer):
    """Minimises `listwise_loss`."""

    def __init__(self, *, config: ListwiseConfig, recipe: Recipe, **arguments: Any) -> None:
        super().__init__(config=config, **arguments)
        self.config = config
        self.recipe = recipe

    def step_loss(
        self, model: nn.Module, inputs: Mapping[str, Any]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        backbone = Backbone(model, truncate_dim=self.recipe.truncate_dim)
        return listwise_loss(
            lambda tokens: backbone(**tokens)[:, 0],
            inputs,
            self.config,
            self.recipe.query_weight,
        )


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
    changes = {"listwise": budget, "query_weight": weight, "feedback": config.feedback}
    return base.model_copy(update={**changes, "adapter": None})


def _trainer(
    config: ListwiseConfig,
    arguments: TrainingArguments,
    base: Encoder,
    train: Sequence[Sequence[RankingExample]],
    dev: Sequence[DevSet],
    known: TextVectors | None,
) -> ListTrainer:
    model = trainable_model(config, base.weights_folder)
    folder_tokenizer = load_tokenizer(base.weights_folder)
    padding = pad_id(folder_tokenizer)
    # Its own, because the encoder's belongs to the encoder's thread.
    tokenizer = TextTokenizer(folder_tokenizer, plain_tokenizer(folder_tokenizer), base.recipe)
    queries = None if known is None else query_vectors(base, train)
    feedback = None
    if config.feedback is not None and known is not None and queries is not None:
        feedback = ListFeedback(config.feedback, known, queries)
    groups = groups_of(train)
    tell_small(groups, arguments.per_device_train_batch_size)
    dataset = ListDataset(groups, config, seed=arguments.seed, feedback=feedback)
    batches = SourceBatches(
        [len(group) for group in groups],
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
    reranker = ListwiseReranker(live, stored_vectors="trust")
    return ListTrainer(
        config=config,
        recipe=base.recipe,
        batches=batches,
        dev=dev,
        measure=lambda part: part.measure(live, known, reranker),
        model=model,
        args=arguments,
        data_collator=ListCollator(
            tokenizer,
            pad_id=padding,
            vectors=known,
            query_vectors=queries,
            tasks=task_tokenizers(base.weights_folder, base.recipe, train),
        ),
    )


def _save(config: ListwiseConfig, model: Any, base: Encoder) -> None:
    if config.mode == "adapter":
        save_adapter(config.output, model, base.recipe, base=base.name, digest=base.digest)
        return
    save_merged(config.output, model, base.weights_folder, base.recipe)
