"""The collection that comes with the package, so that the demo and the tests need no network."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from e2rank_rag.evaluation.collections import Collection


def shipped_collection(name: str = "scifact") -> Collection:
    """SciFact in BEIR's layout: 5183 abstracts, splits `train` and `test`; terms in `SOURCE.md`.

    Raises:
        ValueError: a name that does not come with the package; it lists those that do.
    """
    # A wheel is always unpacked, so the resource is a real folder.
    root = Path(str(files(__name__)))
    names = sorted(path.name for path in root.iterdir() if (path / "qrels").is_dir())
    if name not in names:
        raise ValueError(f"no collection {name!r} comes with the package; there is: {names}")
    return Collection.open(root / name)
