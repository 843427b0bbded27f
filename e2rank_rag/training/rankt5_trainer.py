"""Stage `rankt5`: train a ranker of pairs by a ranking loss (arXiv 2210.10634).

folder = train_rankt5(read_config("rankt5.yaml"))
ranker = CrossEncoder.from_pretrained(folder)
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import TrainingArguments

from e2rank_rag.distributed import share
from e2rank_rag.evaluation.metrics import evaluate
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
from e2rank_rag.pair_tokenization import CrossEncoderRecipe
from e2rank_rag.rerankers import CrossEncoderReranker
from e2rank_rag.tokenization import MIN_SHARE
from e2rank_rag.training.batches import SourceBatches
from e2rank_rag.training.config import RankT5Config
from e2rank_rag.training.dev_sets import NDCG, DevSet, whole_run
from e2rank_rag.training.gradcache import in_chunks
from e2rank_rag.training.ranking import (
    RankedListCollator,
    RankedListDataset,
    list_loss,
    ranking_loss,
    target_labels,
)
from e2rank_rag.training.run import Run
from e2rank_rag.training.runs import (
    StageTrainer,
    known_vectors,
    with_options,
)
from e2rank_rag.training.sources import is_mined, read_dev, read_training
from e2rank_rag.types import Hit, RankingExample

logger = logging.getLogger(__name__)

ARGUMENTS: Mapping[str, Any] = {
    "learning_rate": 1e-4,
    "lr_scheduler_type": "constant",
    "per_device_train_batch_size": 32,
}
"""The paper's values (arXiv 2210.10634, section 5.2), under those of the configuration."""

MEASURES = {"rerank": NDCG, "RR@10": "RR@10", "nDCG@5": "nDCG@5", "AP": "AP"}
"""What a dev set is measured by, as it is logged: those of section 5.1; the first decides."""


def train_rankt5(config: RankT5Config, *, resume: bool = False) -> Path:
    """Train as configured and write the model to `config.output`; returns that folder.

    `run/` there and `resume` are as in `trainer.train_listwise`.

    Raises before the first step: ValueError for data that cannot be trained on, CheckpointError for
    a model that is none, FileExistsError where `run/` is another run's.
    """
    run = Run.begin(config, ARGUMENTS, resume=resume)
    arguments = run.arguments
    folder, recipe = _base(config)
    train, dev = _read(config, arguments)
    torch.manual_seed(arguments.seed)  # here, so that a head is drawn alike whatever was mined
    trainer = _trainer(config, arguments, folder, recipe, train, dev)
    return run.finish(
        trainer,
        digest=trainer.digest,
        examples=[len(part) for part in train],
        save=lambda model: _save(config, model, folder, recipe),
    )


class RankingTrainer(StageTrainer):
    """Minimises a ranking loss over the scores of each list.

    digest: of the weights that training begins from.
    """

    def __init__(
        self, *, config: RankT5Config, scorer: PairModel, digest: str, **arguments: Any
    ) -> None:
        reranker = CrossEncoderReranker(scorer)
        super().__init__(
            config=config,
            measure=lambda part: measure_reranked(part, reranker),
            decides=list(MEASURES)[:1],
            **arguments,
        )
        self.scorer = scorer
        self.digest = digest
        self.loss = ranking_loss(config)

    def step_loss(
        self, model: nn.Module, inputs: Mapping[str, Any]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        scores = in_chunks(model, inputs["chunks"], self.scorer.read)
        return list_loss(scores, inputs, self.loss), {}


def measure_reranked(dev: DevSet, reranker: CrossEncoderReranker) -> dict[str, float]:
    """`MEASURES` of the candidates in their new order."""
    ids = share(list(dev.queries))
    ranked = reranker.rerank_batch(
        [dev.queries[id] for id in ids],
        [[Hit(document, 0.0) for document in dev.candidates[id]] for id in ids],
    )
    run = whole_run(dict(zip(ids, ranked, strict=True)), dev.queries)
    figures = evaluate(run, dev.qrels, list(MEASURES.values()))
    return {name: figures[measure] for name, measure in MEASURES.items()}


def _save(config: RankT5Config, model: Any, folder: Path, recipe: CrossEncoderRecipe) -> None:
    if isinstance(model, PeftModel):
        model = model.merge_and_unload(safe_merge=True)
    save_cross_encoder(config.output, model, load_tokenizer(folder), recipe)


def _base(config: RankT5Config) -> tuple[Path, CrossEncoderRecipe]:
    """Where training begins, and how it scores."""
    folder = resolve_folder(config.init_from).resolve()
    if read_system(folder) == "e2rank":
        adapter = read_recipe(folder, name=config.init_from).adapter
        if adapter is not None:
            raise ValueError(
                f"{config.init_from} has a listwise adapter, which this training does not go on "
                f"with: begin from its base, {name_of_base(adapter.base, folder)!r}"
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


def _read(
    config: RankT5Config, arguments: TrainingArguments
) -> tuple[list[list[RankingExample]], list[DevSet]]:
    """Lists to train on and dev sets; candidates are found by `config.retriever`."""
    train: list[list[RankingExample]] = []
    dev: list[DevSet] = []
    with _retriever(config, arguments.device) as retriever:
        # One corpus may serve several splits.
        known = None if retriever is None else known_vectors(retriever, config.vectors)
        for source in config.data:
            vectors = known if is_mined(source) else None
            train += read_training([source], retriever, vectors, seed=arguments.seed)
        for source in config.dev:
            vectors = known if is_mined(source) else None
            dev += read_dev([source], retriever, vectors, seed=arguments.seed)
    return train, dev


@contextmanager
def _retriever(config: RankT5Config, device: torch.device) -> Iterator[Any]:
    """The encoder that finds candidates; None where every source is a list already."""
    if not any(is_mined(source) for source in (*config.data, *config.dev)):
        for name in ("retriever", "vectors"):
            if name in config.model_fields_set and getattr(config, name) is not None:
                raise ValueError(f"{name}: no source is mined, so it is not used; leave it out")
        yield None
        return
    with Encoder.from_pretrained(config.retriever, device=str(device)) as encoder:
        yield encoder


def _trainer(
    config: RankT5Config,
    arguments: TrainingArguments,
    folder: Path,
    recipe: CrossEncoderRecipe,
    train: Sequence[Sequence[RankingExample]],
    dev: Sequence[DevSet],
) -> RankingTrainer:
    base = load_cross_encoder(folder, recipe, dtype=torch.float32, fresh_head=True)
    digest = weights_digest(base, pooler=True)
    heads = head_modules(base)
    in_heads = [name for name, _ in base.named_modules() if name.partition(".")[0] in heads]
    model = with_options(base, config, left_alone=in_heads, heads=heads)
    scorer = PairModel(model, load_tokenizer(folder), recipe)
    _check(config, scorer, train, dev)
    dataset = RankedListDataset(
        train,
        list_size=config.list_size,
        candidates=config.candidates,
        seed=arguments.seed,
        loss=config.loss,
        targets=config.targets,
    )
    batches = SourceBatches(
        [len(part) for part in train],
        arguments.per_device_train_batch_size,
        balance=config.balance,
        seed=arguments.seed,
        dataset=dataset,
    )
    return RankingTrainer(
        config=config,
        scorer=scorer,
        digest=digest,
        batches=batches,
        dev=dev,
        model=model,
        args=arguments,
        data_collator=RankedListCollator(
            scorer.tokenizer, chunk_tokens=config.chunk_tokens, upsample=config.upsamples
        ),
    )


def _check(
    config: RankT5Config,
    scorer: PairModel,
    train: Sequence[Sequence[RankingExample]],
    dev: Sequence[DevSet],
) -> None:
    """ValueError for what would stop a run half-way, or teach nothing; a warning for a part."""
    examples = [example for part in train for example in part]
    measured = [query for part in dev for query in part.queries.values()]
    for query in [*(example.query for example in examples), *measured]:
        room = scorer.tokenizer.room(query)
        if room < MIN_SHARE:
            raise ValueError(
                f"max_tokens is {scorer.recipe.max_tokens}: a query leaves {max(room, 0)} of them "
                f"for a document, and {MIN_SHARE} are the fewest; raise it or leave the query out: "
                f"{query[:60]!r}"
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
