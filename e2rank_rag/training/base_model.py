"""The model that training begins from: opened, made trainable, saved."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from e2rank_rag.models.adapter import quiet_peft
from e2rank_rag.models.e2rank_folder import save_checkpoint
from e2rank_rag.models.encoder import Encoder
from e2rank_rag.models.tokenizer_files import load_tokenizer
from e2rank_rag.models.weights import load_transformer, weights_digest
from e2rank_rag.prompts import ChatListwise, resolve_task
from e2rank_rag.recipe import Recipe
from e2rank_rag.tokenization import TextTokenizer, plain_tokenizer
from e2rank_rag.training.config import EncoderConfig, StageConfig
from e2rank_rag.training.lists import SourceExamples
from e2rank_rag.training.vectors import FrozenVectors, TextVectors


def open_base(config: EncoderConfig, device: torch.device) -> Encoder:
    """The encoder that training begins from; ValueError if it has a listwise adapter."""
    base = Encoder.from_pretrained(
        config.init_from, pooling=config.pooling, prompts=config.prompts, device=str(device)
    )
    return without_adapter(base)


def without_adapter(base: Encoder) -> Encoder:
    """The same encoder; it is closed, and a ValueError raised, if it has a listwise adapter."""
    if base.recipe.adapter is not None:
        base.close()
        raise ValueError(
            f"{base.name} has a listwise adapter already, which cannot be trained further: "
            f"begin from its base, {base.recipe.adapter.base!r} ({base.weights_folder})"
        )
    return base


def document_vectors(base: Encoder, folder: Path | None) -> TextVectors:
    """An empty table for the vectors of documents that stay; folder: the vector folder."""
    cache = None if folder is None else folder / f"{base.fingerprint}.npz"
    return TextVectors(base.dim, cache=cache)


def frozen_vectors(base: Encoder, documents: TextVectors, train: SourceExamples) -> FrozenVectors:
    """The documents' vectors, and those of the queries to train on, encoded with their task."""
    queries: dict[str | None, list[str]] = {}
    for example in (example for part in train for example in part):
        queries.setdefault(example.task, []).append(example.query)
    vectors = {task: TextVectors(base.dim) for task in queries}
    for task, texts in queries.items():
        with base.with_recipe(task_recipe(base.recipe, task)) as instructed:
            vectors[task].encode(texts, instructed.encode_queries)
    return FrozenVectors(documents, vectors)


def task_tokenizers(
    folder: Path, recipe: Recipe, train: SourceExamples
) -> dict[str | None, TextTokenizer]:
    """A tokenizer with the instructions of each task of the examples, and one without a task.

    They belong to the caller's thread, unlike an encoder's tokenizer.
    """
    tokenizer = load_tokenizer(folder)
    plain = plain_tokenizer(tokenizer)
    tasks = {example.task for part in train for example in part}
    return {
        task: TextTokenizer(tokenizer, plain, task_recipe(recipe, task))
        for task in [None, *sorted(filter(None, tasks))]
    }


def task_recipe(recipe: Recipe, task: str | None) -> Recipe:
    """The recipe with the instructions of a task.

    task: a name that `prompts.resolve_task` knows, or a sentence, which becomes the instruction of
        plain queries only. ValueError for a single word that is not a name.

    Prompts that have no place for an instruction stay as they are.
    """
    prompts = recipe.prompts
    placed = "{task}" in prompts.query or isinstance(prompts.listwise, ChatListwise)
    if task is None or not placed:
        return recipe
    chosen = prompts.task.model_copy(update={"query": task}) if " " in task else resolve_task(task)
    return recipe.model_copy(update={"prompts": prompts.model_copy(update={"task": chosen})})


def trainable_model(config: StageConfig, weights: Path) -> PreTrainedModel | PeftModel:
    """The transformer of a folder in float32, with LoRA layers if the configuration has them."""
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
    """The model with the configuration's dropout and LoRA layers.

    left_alone: modules without LoRA layers. heads: modules that are trained whole beside them.
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


def merged(model: Any) -> Any:
    """The model with its LoRA layers merged in; a model without any as it is."""
    return model.merge_and_unload(safe_merge=True) if isinstance(model, PeftModel) else model


def save_merged(folder: Path, model: Any, weights: Path, recipe: Recipe) -> str:
    """Write the model, LoRA layers merged in, with the tokenizer of the folder `weights`; returns
    the digest of the weights."""
    whole = merged(model)
    save_checkpoint(folder, whole, load_tokenizer(weights), recipe)
    return weights_digest(whole)


def _set_dropout(model: nn.Module, share: float) -> bool:
    """Set the dropout everywhere; returns whether the model has any."""
    found = False
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = share
            found = True
        for name in ("dropout", "attention_dropout"):  # numbers, in attention layers
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, share)
                found = True
    return found
