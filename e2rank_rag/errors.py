"""Errors that a caller may catch by name. Other errors are Python's own."""

from __future__ import annotations


class StoredVectorMismatch(ValueError):
    """The vectors in a store were made by another model than the one that would use them."""


class StoreError(RuntimeError):
    """A store cannot be opened, read or written: locked, read-only, unreachable, wrong shape."""


class CollectionMissing(StoreError):
    """The collection does not exist."""


class CheckpointError(ValueError):
    """A model folder cannot be used as it is; the message says what to change."""
