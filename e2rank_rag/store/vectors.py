"""Embeddings on their way into a store and out of it: checked, float32, of unit length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from e2rank_rag.types import Embeddings


def unit_rows(embeddings: Any, *, dim: int, labels: Sequence[str] | None = None) -> Embeddings:
    """float32 [n, dim] of unit length.

    `labels` names the rows in errors, one each; a ValueError says which row is not finite or has no
    direction, or that number, dimension or dtype are wrong.
    """
    rows = np.asarray(embeddings)
    if rows.dtype.kind != "f":
        raise ValueError(f"embeddings must be floats, got dtype {rows.dtype}")
    if rows.ndim != 2 or rows.shape[1] != dim:
        raise ValueError(f"embeddings must have the shape [n, {dim}], got {list(rows.shape)}")
    if labels is not None and len(labels) != len(rows):
        raise ValueError(f"{len(labels)} documents need as many embeddings, got {len(rows)}")
    # The squares of large float32 values overflow, those of small ones vanish.
    wide = rows.astype(np.float64)
    lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    _refuse(~np.isfinite(lengths[:, 0]), "is not finite (NaN or infinity)", labels)
    _refuse(lengths[:, 0] == 0.0, "is zero and has no direction", labels)
    unit: Embeddings = (wide / lengths).astype(np.float32)
    return unit


def one_row(embedding: Any) -> Any:
    """[dim] as [1, dim]; ValueError for any other shape."""
    vector = np.asarray(embedding)
    if vector.ndim != 1:
        raise ValueError(f"one embedding has the shape [dim], got {list(vector.shape)}")
    return vector[None, :]


def stored_vector(vector: Any, vector_name: str | None) -> Embeddings | None:
    """float32 [dim] of unit length, from the vector field of a point; None where it has none."""
    if isinstance(vector, dict):
        vector = vector.get(vector_name or "")
    if vector is None:
        return None
    row = np.asarray(vector, dtype=np.float32)
    length = float(np.linalg.norm(row))
    # A zero vector of another writer stays what it is: it scores 0 against everything.
    return row if length == 0.0 else row / np.float32(length)


def _refuse(bad: Any, reason: str, labels: Sequence[str] | None) -> None:
    if not bad.any():
        return
    row = int(np.argmax(bad))
    which = f"row {row}" if labels is None else f"document {labels[row]!r}"
    raise ValueError(f"the embedding of {which} {reason}")
