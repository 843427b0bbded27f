"""Training from Python: `train` runs a configuration, `adapt` gives a model a listwise adapter.

    from e2rank_rag.training import adapt, read_config, train

    train("stage2.yaml")
    train(read_config("stage2.yaml", ["trainer.max_steps=100"]))
    adapt("minilm", "my-dataset", "my-model", trainer={"max_steps": 500})

Importing this loads neither torch nor transformers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from e2rank_rag.training.config import StageConfig

__all__ = ["adapt", "read_config", "train"]


def train(config: StageConfig | str | Path, *, resume: bool = False) -> Path:
    """Train one stage and write the model to `config.output`; returns that folder.

    The folder `run` in it holds the configuration, versions and hashes of the data (`run.json`),
    everything that was logged (`metrics.jsonl`), a plot and the checkpoints. Under torchrun each
    process calls this, and the first one writes.

    config: a YAML file, what `read_config` returns, or a record of `training.config`.
    resume: go on from the newest checkpoint there, with the batches that would have come.

    Raises before the first step: ValueError for a base or data that cannot be trained on, and for
    an argument of the trainer that does not exist; CheckpointError for a base that cannot be
    opened; FileExistsError if `run` holds another training run.
    """
    from e2rank_rag.training.loop import run_stage
    from e2rank_rag.training.stages import stage_of

    if isinstance(config, str | Path):
        config = read_config(config)
    return run_stage(stage_of(config), config, resume=resume)


def adapt(
    base: str | Path,
    data: str | Path,
    output: str | Path,
    dev: str | Path | None = None,
    *,
    mine: bool = True,
    corpus: str | Path | None = None,
    resume: bool = False,
    **settings: Any,
) -> Path:
    """Give an embedding model a listwise adapter; its index stays. Returns the folder `output`.

    base: the model of the index: a folder, a hub id, or "minilm".
    data: a BEIR folder with a train split, or a file of examples.
    dev: what to measure on while training; None: the dev split of a folder that has one.
    mine: mine lists from all documents of a file of pairs; False: take its lists as they are.
    corpus: a file of documents to mine in addition to those of a file of pairs.
    resume, and what is raised: see `train`.
    settings: fields of `config.ListwiseConfig` that replace those of `configs/adapter.yaml`, such
        as `list_size=8`; of a block such as `trainer={"max_steps": 500}` only the given keys.
    """
    from e2rank_rag.training.adapter_config import adapter_sources
    from e2rank_rag.training.config import ADAPTER_CONFIG

    given = adapter_sources(base, data, output, dev, mine=mine, corpus=corpus)
    return train(read_config(ADAPTER_CONFIG, given=given | settings), resume=resume)


def read_config(
    path: str | Path, overrides: Sequence[str] = (), given: Mapping[str, Any] | None = None
) -> StageConfig:
    """The configuration of a YAML file; see `config.read_config`."""
    from e2rank_rag.training.config import read_config as read

    return read(path, overrides, given)
