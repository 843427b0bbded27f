"""The `trainer` block of a configuration as `transformers.TrainingArguments`.

Each argument is read by its type and used, or refused by its name.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping
from enum import Enum
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Any, get_args, get_type_hints

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from transformers import TrainingArguments

from e2rank_rag.training.config import StageConfig
from e2rank_rag.training.settings import as_written, switched, told

logger = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
"""The folder of the checkpoints, in the run folder."""


def _because(reason: str, *names: str) -> dict[str, str]:
    return dict.fromkeys(names, reason)


REFUSED: Mapping[str, str] = {
    **_because("is set by the training itself; use `output`", "output_dir"),
    **_because("is set by the training itself", "remove_unused_columns", "local_rank"),
    **_because("is set by --resume", "resume_from_checkpoint"),
    **_because(
        "is for scripts that choose what to do; here `dev` is measured if there is one",
        *("do_train", "do_eval", "do_predict"),
    ),
    **_because(
        "is for another evaluation: here dev sets are ranked as the model serves",
        *("per_device_eval_batch_size", "eval_accumulation_steps", "prediction_loss_only"),
        *("eval_do_concat_batches", "eval_use_gather_object", "include_for_metrics"),
        *("batch_eval_metrics", "bf16_full_eval", "fp16_full_eval", "label_names"),
    ),
    **_because(
        "is for other losses: here a loss is a mean over queries or lists",
        *("label_smoothing_factor", "average_tokens_across_devices"),
        *("include_num_input_tokens_seen", "neftune_noise_alpha", "use_cache"),
    ),
    **_because(
        "is for other batches: here each batch is full, has one source and is drawn by the seed; "
        "see `balance` and per_device_train_batch_size",
        *("dataloader_drop_last", "train_sampling_strategy", "length_column_name"),
        *("group_by_length", "data_seed", "auto_find_batch_size", "accelerator_config"),
    ),
    **_because(
        "is for data that does not change: here lists are drawn in each epoch, by new workers",
        "dataloader_persistent_workers",
    ),
    **_because(
        "is for models split over processes: here each process holds the whole model",
        *("fsdp", "fsdp_config", "parallelism_config"),
    ),
    **_because(
        "would upload checkpoints, not the model: upload the output at the end",
        *("push_to_hub", "hub_token", "hub_private_repo", "hub_model_id", "hub_strategy"),
        *("hub_always_push", "hub_revision"),
    ),
}
"""Arguments of transformers that no stage takes, with the reason that the error gives."""


def training_arguments(
    config: StageConfig, run: Path, stage: Mapping[str, Any]
) -> TrainingArguments:
    """The trainer's arguments: the configuration's, then those of the stage, then ours.

    run: the run folder. stage: defaults of the stage.

    Raises ValueError that names the argument, if the trainer does not know it, it is in `REFUSED`,
    or its value has another type.
    """
    given = {name: _typed(name, value) for name, value in config.trainer.items()}
    stated: dict[str, Any] = {
        "num_train_epochs": 1,
        "logging_steps": 10,
        "report_to": "none",
        "use_cpu": not torch.cuda.is_available(),
        "dataloader_pin_memory": torch.cuda.is_available(),
        "ddp_find_unused_parameters": False,  # all are used: what no loss reads is frozen
        **_kept(config, given),
        **stage,
        **given,
    }
    try:
        return TrainingArguments(
            output_dir=str(run / CHECKPOINTS), remove_unused_columns=False, **stated
        )
    except (
        TypeError,
        ValueError,
        ImportError,
    ) as error:  # ImportError: a package is missing
        raise ValueError(f"trainer: {error}") from error


def _kept(config: StageConfig, given: Mapping[str, Any]) -> dict[str, Any]:
    """When dev sets are measured and which checkpoints are kept, by default.

    Only two checkpoints are kept: one of a large model has some gigabytes.
    """
    saved = {"save_strategy": "steps", "save_steps": 0.1, "save_total_limit": 2}
    if not config.dev:
        for name, off in (("eval_strategy", "no"), ("eval_on_start", False)):
            if given.get(name, off) != off:
                raise ValueError(f"trainer.{name}: there is no dev set to measure; give `dev`")
        if config.patience is not None:
            raise ValueError("patience: there is no dev set to measure; give `dev`")
        return saved
    strategies = [str(getattr(each, "value", each)) for each in _strategies(given)]
    best = "no" not in strategies
    if not best:
        if config.patience is not None:
            raise ValueError(
                "patience: it needs eval_strategy and save_strategy, and one of them in "
                'trainer is "no"'
            )
        logger.warning("the model will be that of the last step, not of the best")
    return {
        **saved,
        "eval_strategy": "steps",
        "eval_steps": 0.1,
        "save_strategy": strategies[0] if best else "steps",
        # Only weights that were measured can be the best, so they are saved then.
        "save_steps": given.get("eval_steps") or 0.1,
        "load_best_model_at_end": best,
        "metric_for_best_model": "mean",
        "greater_is_better": True,
    }


def _strategies(given: Mapping[str, Any]) -> list[Any]:
    measured = given.get("eval_strategy", "steps")
    return [measured, given.get("save_strategy", measured)]


def _typed(name: str, value: Any) -> Any:
    """The value of an argument, read by its type in transformers."""
    if name in REFUSED:
        raise ValueError(f"trainer.{name} {REFUSED[name]}")
    types = get_type_hints(TrainingArguments)
    known = TrainingArguments.__dataclass_fields__
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        meant = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(
            f"trainer.{name} is not an argument of transformers.TrainingArguments{meant}"
        )
    annotation = _words(types[name])
    if isinstance(value, Mapping):
        value = switched(value)
    try:
        value = as_written(value, annotation)
        options = ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False)
        return TypeAdapter(annotation, config=options).validate_python(value)
    except ValidationError as error:
        raise ValueError(told(error, within=("trainer", name))) from error
    except ValueError as error:
        raise ValueError(f"trainer.{name}: {error}") from error


def _words(annotation: Any) -> Any:
    """The type without `str`, if it has an enumeration of the words that are allowed."""
    parts = get_args(annotation)
    if any(isinstance(part, type) and issubclass(part, Enum) for part in parts):
        return reduce(or_, (part for part in parts if part is not str))
    return annotation
