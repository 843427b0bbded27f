"""Helpers of several test files."""

from __future__ import annotations

import contextlib
import gzip
import json
import signal


@contextlib.contextmanager
def watchdog(seconds=60):
    """Fails a test that would go on for ever. Main thread only."""

    def bark(*_):
        raise AssertionError(f"still busy after {seconds} seconds")

    before = signal.signal(signal.SIGALRM, bark)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def write_jsonl(path, records):
    """Records as JSON lines, compressed where the name ends in .gz; returns the path."""
    data = "".join(json.dumps(record) + "\n" for record in records).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path
