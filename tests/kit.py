"""Helpers of several test files."""

from __future__ import annotations

import gzip
import json


def write_jsonl(path, records):
    """Records as JSON lines, compressed where the name ends in .gz; returns the path."""
    data = "".join(json.dumps(record) + "\n" for record in records).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path
