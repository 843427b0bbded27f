"""The sources of `e2rank adapt`: what `configs/adapter.yaml` lacks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from e2rank_rag.evaluation.collections import Collection


def adapter_sources(
    base: str | Path,
    data: str | Path,
    output: str | Path,
    dev: str | Path | None,
    *,
    mine: bool,
    corpus: str | Path | None,
) -> dict[str, Any]:
    """What `ADAPTER_CONFIG` lacks; see `training.adapt` for the arguments."""
    data = Path(data)
    of_file = {"mine": mine, "corpus": corpus}
    measured: list[dict[str, Any]] = []
    if dev is not None:
        measured = [{"path": dev, **({"split": "dev"} if Path(dev).is_dir() else of_file)}]
    elif data.is_dir() and "dev" in Collection.open(data).splits:
        measured = [{"path": data, "split": "dev", "limit": 200}]
    return {
        "init_from": base,
        "output": output,
        "data": [{"path": data, "mine": mine and not data.is_dir(), "corpus": corpus}],
        "dev": measured,
    }
