"""What a run leaves behind besides the model: what it was, and a plot of how it went."""

from __future__ import annotations

import hashlib
import json
import logging
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import e2rank_rag
from e2rank_rag.lines import read_lines
from e2rank_rag.training.config import Source, StageConfig

logger = logging.getLogger(__name__)

PACKAGES = ("torch", "transformers", "peft", "accelerate", "tokenizers", "numpy")


def describe_run(
    path: Path, config: StageConfig, digest: str, examples: Sequence[int], **facts: Any
) -> None:
    """Write configuration, base weights, hashes of the data and versions as JSON.

    digest: of the weights that training began from.
    examples: how many each source of `config.data` gave.
    facts: what else is worth a record, as JSON values.
    """
    sources = [*config.data, *config.dev]
    counts: list[int | None] = [*examples, *[None] * len(config.dev)]
    record: dict[str, Any] = {
        "config": config.model_dump(mode="json"),
        "base": {"name": config.init_from, "weights": digest},
        "data": [
            {
                "path": str(source.path),
                "examples": count,
                "sha256": {file.name: _sha256(file) for file in _files(source)},
            }
            for source, count in zip(sources, counts, strict=True)
        ],
        **facts,
        "versions": {
            "e2rank-rag": e2rank_rag.__version__,
            "python": platform.python_version(),
            **{package: _version(package) for package in PACKAGES},
        },
    }
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def plot_run(metrics: Path, picture: Path) -> None:
    """Draw losses and dev figures over the steps; a warning says so where matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        logger.warning("no plot was drawn: pip install 'e2rank-rag[plots]'")
        return
    records = [json.loads(line) for _, line in read_lines(metrics)]
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    losses, figures = figure.subplots(1, 2)
    for axes, names, label in (
        (losses, ("loss", "info_nce", "ranknet"), "loss"),
        (figures, ("eval_retrieve", "eval_rerank"), "nDCG@10, mean of the dev sets"),
    ):
        for name in names:
            points = [(record["step"], record[name]) for record in records if name in record]
            if points:
                axes.plot(*zip(*points, strict=True), label=name.removeprefix("eval_"))
        axes.set_xlabel("step")
        axes.set_ylabel(label)
        if axes.has_data():
            axes.legend()
    figure.savefig(picture, dpi=120)


def _files(source: Source) -> list[Path]:
    if source.path.is_dir():
        return sorted(path for path in source.path.rglob("*.*sv*") if path.is_file()) + sorted(
            source.path.glob("*.jsonl*")
        )
    return [source.path, *([source.corpus] if source.corpus else [])]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
