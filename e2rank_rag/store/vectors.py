"""Checks embeddings that are written to or read from a store: float32, unit length."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import Any

import numpy as np

from e2rank_rag.types import Embeddings

UNIT_TOLERANCE = 1e-5


def unit_rows(embeddings: Any, *, dim: int, labels: Sequence[str] | None = None) -> Embeddings:
    """float32 [n, dim] of unit length.

    labels: the name of each row in errors. ValueError for a row that is zero or not finite, and for
    a wrong number, dimension or dtype.
    """
    rows = np.asarray(embeddings)
    if rows.dtype.kind != "f":
        raise ValueError(f"embeddings must be floats, got dtype {rows.dtype}")
    if rows.ndim != 2 or rows.shape[1] != dim:
        raise ValueError(f"embeddings must have the shape [n, {dim}], got {list(rows.shape)}")
    if labels is not None and len(labels) != len(rows):
        raise ValueError(f"{len(labels)} documents need as many embeddings, got {len(rows)}")
    # The squares of large float32 values overflow, those of small values become 0.
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
    """float32 [dim] of unit length, from the vector field of a point.

    None if the point has no vector, or one that is zero or not finite: see `unit_or_none`.
    """
    if isinstance(vector, dict):
        vector = vector.get(vector_name or "")
    return None if vector is None else unit_or_none(vector)


def unit_or_none(vector: Any) -> Embeddings | None:
    """float32 [dim] of unit length; None if the vector is zero or not finite, which gives no score.
    ValueError if it is not a list of numbers."""
    row = np.asarray(vector)
    if row.dtype.kind not in "fiu" or row.ndim != 1:
        raise ValueError(f"a vector is a list of numbers, got dtype {row.dtype}, {row.ndim}-D")
    if row.dtype == np.float32 and abs(np.vdot(row, row) - 1.0) < UNIT_TOLERANCE:
        return row  # most are; a search checks each of its hits
    wide = row.astype(np.float64)  # the squares of large float32 values overflow
    length = float(np.linalg.norm(wide))
    if not isfinite(length) or length == 0.0:
        return None
    unit: Embeddings = (wide / length).astype(np.float32)
    return unit


def _refuse(bad: Any, reason: str, labels: Sequence[str] | None) -> None:
    if not bad.any():
        return
    row = int(np.argmax(bad))
    which = f"row {row}" if labels is None else f"document {labels[row]!r}"
    raise ValueError(f"the embedding of {which} {reason}")
