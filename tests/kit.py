"""Helpers of several test files."""

from __future__ import annotations

import contextlib
import gzip
import json
import signal
import sqlite3

import pytest

from e2rank_rag.store import QdrantStore


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
    """Records as JSON lines, strings as lines; compressed if the name ends in .gz; the path."""
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    data = "".join(f"{line}\n" for line in lines).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def ids(hits):
    return [hit.document.id for hit in hits]


def scores(hits):
    return [hit.score for hit in hits]


def same(ranking, other):
    """The same documents in the same order, scores as near as two computations come."""
    return ids(ranking) == ids(other) and scores(ranking) == pytest.approx(scores(other), abs=1e-5)


def filled_store(encoder, documents, *, fingerprint=True, bm25=None):
    """A store in memory of these documents; with or without a record of the encoder."""
    store = QdrantStore.open(":memory:", "things", bm25=bm25)
    store.prepare(encoder.dim, fingerprint=encoder.fingerprint if fingerprint else None)
    store.upsert(documents, encoder.encode_documents([d.text for d in documents]))
    return store


def stored_points(index):
    """How many points a running process has written, read beside it."""
    files = list(index.glob("collection/*/storage.sqlite"))
    if not files:
        return 0
    try:
        connection = sqlite3.connect(f"file:{files[0]}?mode=ro", uri=True, timeout=5)
        try:
            return connection.execute("SELECT COUNT(*) FROM points").fetchone()[0]
        finally:
            connection.close()
    except sqlite3.OperationalError:
        return 0


def adapted(folder, *, seed, **options):
    """A peft model of this folder whose LoRA weights are random, so that they do something.

    options: of `LoraConfig`, in place of these.
    """
    import torch
    from peft import LoraConfig, get_peft_model

    from e2rank_rag.models.adapter import quiet_peft
    from e2rank_rag.models.weights import load_transformer

    transformer = load_transformer(folder, dtype=torch.float32)
    modules = ["query", "value", "q_proj", "v_proj"]
    chosen = LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": modules, **options})
    with quiet_peft():
        model = get_peft_model(transformer, chosen).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return model
