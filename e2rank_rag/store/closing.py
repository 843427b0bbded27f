"""Closes open folder clients at the end of the process, while imports still work.

Qdrant's client closes itself when it is garbage-collected. At the very end of a process that needs
an import, which Python can no longer make, so it prints a traceback.
"""

from __future__ import annotations

import atexit
from contextlib import suppress
from weakref import WeakSet

from qdrant_client import QdrantClient

_open_folders: WeakSet[QdrantClient] = WeakSet()


def close_at_exit(client: QdrantClient) -> None:
    """Close a folder's client at the end of the process, if it still exists then."""
    _open_folders.add(client)


@atexit.register  # at import, so that it runs after what users register: handlers run last to first
def _close_all() -> None:
    for client in list(_open_folders):
        # SQLite connections can be closed only by the thread that opened them.
        with suppress(Exception):
            client.close()
