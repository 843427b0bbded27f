"""The errors a caller may want to catch by name. Everything else raises Python's own."""

from __future__ import annotations


class StoredVectorMismatch(ValueError):
    """The vectors in a store were not made by the model that is asked to use them."""


class StoreError(RuntimeError):
    """A store cannot be opened, read or written: locked, read-only, unreachable, wrong shape."""


class CollectionMissing(StoreError):
    """The collection that was asked for is not there."""


class CheckpointError(ValueError):
    """A model folder cannot be used as it is; the message says what to state or to mend."""
