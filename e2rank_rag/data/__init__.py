"""The dataset in the package, so that the demo and the tests need no network."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from e2rank_rag.evaluation.collections import Collection


def shipped_collection(name: str = "scifact") -> Collection:
    """SciFact as a BEIR folder: 5183 abstracts, splits `train` and `test`; terms in `SOURCE.md`.

    Raises:
        ValueError: the package has no dataset of this name; the message lists the datasets.
    """
    # A wheel is always unpacked, so the resource is a real folder.
    root = Path(str(files(__name__)))
    names = sorted(path.name for path in root.iterdir() if (path / "qrels").is_dir())
    if name not in names:
        raise ValueError(f"no collection {name!r} comes with the package; there is: {names}")
    return Collection.open(root / name)
