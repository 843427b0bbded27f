"""Stage 1: train a model that retrieves, by InfoNCE over the documents of a batch.

folder = train_contrastive(read_config("stage1.yaml"))
encoder = Encoder.from_pretrained(folder)
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import TrainingArguments

from e2rank_rag.distributed import gather, process, processes
from e2rank_rag.losses import info_nce_loss
from e2rank_rag.models.tokenizer_files import load_tokenizer
from e2rank_rag.recipe import Recipe
from e2rank_rag.tokenization import TextTokenizer, pad_id, plain_tokenizer
from e2rank_rag.training.batches import SourceBatches, groups_of, tell_small
from e2rank_rag.training.config import ContrastiveConfig
from e2rank_rag.training.dev_sets import RetrievalSet
from e2rank_rag.training.gradcache import embed
from e2rank_rag.training.live import LiveEncoder
from e2rank_rag.training.pairs import PairCollator, PairDataset, counted_documents, task_recipe
from e2rank_rag.training.run import Run
from e2rank_rag.training.runs import (
    StageTrainer,
    open_base,
    save_merged,
    trainable_model,
)
from e2rank_rag.training.sources import read_retrieval, read_training
from e2rank_rag.types import RankingExample

logger = logging.getLogger(__name__)

ARGUMENTS: Mapping[str, Any] = {
    # Section 4.1 of the paper has 5e-6 here; its appendix C has the stage's other settings too.
    "learning_rate": 2e-5,
    "warmup_steps": 300,
    "per_device_train_batch_size": 512,
}
"""The paper's values (arXiv 2510.22733, appendix C), under those of the configuration."""


def train_contrastive(config: ContrastiveConfig, *, resume: bool = False) -> Path:
    """Train as configured and write the model to `config.output`; returns that folder.

    `run/` there and `resume` are as in `trainer.train_listwise`. With torchrun, each process takes
    batches of its own, and `cross_device_negatives` makes them one.

    Raises before the first step: ValueError for data that cannot be trained on, FileExistsError
    where `run/` is another run's.
    """
    run = Run.begin(config, ARGUMENTS, resume=resume)
    arguments = run.arguments
    with open_base(config, arguments.device) as base:
        mine = config.negatives > 0
        train = read_training(config.data, base, None, seed=arguments.seed, mine=mine)
        dev = read_retrieval(config.dev, base, seed=arguments.seed)
    # The weights of the base are free from here on; what it said of itself stays.
    trainer = _trainer(config, arguments, base.recipe, base.weights_folder, train, dev)
    return run.finish(
        trainer,
        digest=base.digest,
        examples=[len(part) for part in train],
        save=lambda model: save_merged(config.output, model, base.weights_folder, base.recipe),
        negatives=trainer.negatives(),
    )


class ContrastiveTrainer(StageTrainer):
    """Minimises `contrastive_loss`. Dev sets are measured by what the model itself retrieves."""

    def __init__(self, *, config: ContrastiveConfig, live: LiveEncoder, **arguments: Any) -> None:
        super().__init__(
            config=config,
            measure=lambda part: part.measure(live),
            **arguments,
        )
        self.config = config
        self.live = live

    def step_loss(
        self, model: nn.Module, inputs: Mapping[str, Any]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        queries, documents = (
            embed(model, inputs[side], truncate_dim=self.live.recipe.truncate_dim)
            for side in ("queries", "documents")
        )
        return contrastive_loss(queries, documents, inputs, self.config)

    def negatives(self) -> dict[str, int]:
        """Per query: the hard ones, and all documents beside its positive that a step compares it
        with, before copies are masked."""
        hard = self.batches.dataset.negatives
        side_by_side = processes() if self.config.cross_device_negatives else 1
        documents = self.batches.batch_size * side_by_side * (1 + hard)
        return {"hard": hard, "in_all": documents - 1}


def contrastive_loss(
    queries: Tensor, documents: Tensor, batch: Mapping[str, Any], config: ContrastiveConfig
) -> tuple[Tensor, dict[str, Tensor]]:
    """InfoNCE of a batch of `PairCollator`, and what is logged of it.

    queries: [Q, D] and documents: [N, D], of this process; unit length.
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


def _trainer(
    config: ContrastiveConfig,
    arguments: TrainingArguments,
    recipe: Recipe,
    weights: Path,
    train: Sequence[Sequence[RankingExample]],
    dev: Sequence[RetrievalSet],
) -> ContrastiveTrainer:
    tasks = groups_of(train)
    dataset = PairDataset(tasks, negatives=config.negatives, seed=arguments.seed)
    batches = SourceBatches(
        [len(group) for group in tasks],
        arguments.per_device_train_batch_size,
        balance=config.balance,
        seed=arguments.seed,
        dataset=dataset,
        together=processes() if config.cross_device_negatives else 1,
    )
    tokenizer = load_tokenizer(weights)
    plain = plain_tokenizer(tokenizer)
    shorter = _training_lengths(recipe, config.max_tokens)
    tokenizers = {
        group[0].task: TextTokenizer(tokenizer, plain, task_recipe(shorter, group[0].task))
        for group in tasks
    }
    _refuse_wordless(tasks, tokenizers)
    model = trainable_model(config, weights)
    padding = pad_id(tokenizer)
    serving = TextTokenizer(tokenizer, plain, recipe)
    live = LiveEncoder(model, serving, recipe, pad_id=padding, base=None)
    trainer = ContrastiveTrainer(
        config=config,
        live=live,
        batches=batches,
        dev=dev,
        model=model,
        args=arguments,
        data_collator=PairCollator(
            tokenizers,
            pad_id=padding,
            negatives=dataset.negatives,
            chunk_size=config.chunk_size,
        ),
    )
    _tell(trainer, tasks)
    return trainer


def _training_lengths(recipe: Recipe, max_tokens: int | None) -> Recipe:
    """The recipe with the lengths of the training, which what is saved does not have."""
    if max_tokens is None:
        return recipe
    lengths = {
        name: min(getattr(recipe, name), max_tokens) for name in ("query_tokens", "document_tokens")
    }
    return recipe.model_copy(update=lengths)


def _refuse_wordless(
    tasks: Sequence[Sequence[RankingExample]], tokenizers: Mapping[str | None, TextTokenizer]
) -> None:
    """ValueError for a query that has characters, but no token: it would stop a run half-way."""
    for group in tasks:
        for start in range(0, len(group), 1024):
            queries = [example.query for example in group[start : start + 1024]]
            tokenizers[group[0].task].queries(queries)


def _tell(trainer: ContrastiveTrainer, tasks: Sequence[Sequence[RankingExample]]) -> None:
    """What a batch compares, and what about it may not be meant."""
    counts = trainer.negatives()
    logger.info("a query has %d negatives, %d of them hard", counts["in_all"], counts["hard"])
    if trainer.config.negatives > counts["hard"]:
        logger.warning(
            "negatives is %d, but no example has more than %d documents with a label of 0 or below",
            trainer.config.negatives,
            counts["hard"],
        )
    if trainer.args.gradient_accumulation_steps > 1:
        logger.warning(
            "gradient_accumulation_steps is %d, which adds no negatives: raise "
            "per_device_train_batch_size instead; chunk_size bounds the memory",
            trainer.args.gradient_accumulation_steps,
        )
    together = trainer.batches.batch_size * trainer.batches.together
    tell_small(tasks, together)
