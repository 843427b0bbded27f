"""Encoders for tests, and texts for them: one counts what a real one is asked, one is a table."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np

from e2rank_rag.evidence import Evidence
from e2rank_rag.feedback import Feedback
from e2rank_rag.types import ListwiseEncoding, PromptUsage

# Different lengths, so that batches are padded.
TEXTS = [
    "cats",
    "A ferry crosses the strait between the two islands four times a day.",
    "図書館は九時に開きます。",
    "Bread rises because yeast turns sugar into carbon dioxide; salt slows it down. " * 4,
    "17",
    "The oldest bridge over the river was built in 1387\nand carries trams 🙂",
]
QUERIES = ["how is bread made", "cats", "where does the ferry go? 🙂", "Katze schläft"]
CANDIDATES = [TEXTS, TEXTS[:1], TEXTS[::-1], []]


def assert_unit(vectors, count, dim):
    assert vectors.dtype == np.float32
    assert vectors.shape == (count, dim)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)


class CountingEncoder:
    """A real encoder; `documents`, `queries` and `prompts` are the texts it was asked for.

    turn: an orthogonal matrix on every vector makes another model of it. pause_s: per call.
    """

    def __init__(self, inner, *, turn=None, pause_s: float = 0.0) -> None:
        self.inner = inner
        self.name = inner.name if turn is None else f"{inner.name}-turned"
        self.dim = inner.dim
        self.fingerprint = inner.fingerprint if turn is None else "turned"
        self.feedback = inner.feedback
        self.evidence = inner.evidence
        self.documents: list[str] = []
        self.queries: list[str] = []
        self.prompts: list[dict] = []
        self._turn = np.eye(inner.dim, dtype=np.float32) if turn is None else turn
        self._pause_s = pause_s

    def encode_queries(self, queries):
        self.queries += queries
        return self._vectors(self.inner.encode_queries(queries))

    def encode_documents(self, documents, *, on_cut=None):
        self.documents += documents
        return self._vectors(self.inner.encode_documents(documents, on_cut=on_cut))

    def encode_listwise(self, queries, candidates, **options):
        plain = options.pop("query_vectors", None)
        self.prompts += [{"query": query, **options} for query in queries]
        if plain is not None:
            options["query_vectors"] = plain @ self._turn.T
        encoding = self.inner.encode_listwise(queries, candidates, **options)
        return ListwiseEncoding(self._vectors(encoding.embeddings), encoding.usage)

    async def run_async(self, call):
        return await self.inner.run_async(call)

    def _vectors(self, vectors):
        time.sleep(self._pause_s)
        return vectors @ self._turn


class TableEncoder:
    """Vectors by text, scaled to unit length; a listwise vector is that of its query."""

    name = "table"

    def __init__(
        self,
        vectors: Mapping[str, Sequence[float]],
        *,
        fingerprint: str = "t",
        feedback: Feedback | None = None,
        evidence: Evidence | None = None,
    ) -> None:
        self.feedback = feedback
        self.evidence = evidence
        self.shown: list[list[str]] = []
        self._vectors = {
            text: np.asarray(vector, dtype=np.float32) / np.float32(np.linalg.norm(vector))
            for text, vector in vectors.items()
        }
        self.dim = len(next(iter(self._vectors.values())))
        self.fingerprint = fingerprint

    def encode_queries(self, queries):
        return np.array([self._vectors[q] for q in queries], np.float32).reshape(-1, self.dim)

    def encode_documents(self, documents, *, on_cut=None):
        return self.encode_queries(documents)

    def encode_listwise(
        self, queries, candidates, *, depth=None, query_weight=None, query_vectors=None
    ):
        self.shown += [list(texts[:depth]) for texts in candidates]
        usage = tuple(PromptUsage(len(texts[:depth]), 0, 1) for texts in candidates)
        return ListwiseEncoding(
            np.array([self._vectors[f"listwise {q}"] for q in queries], np.float32), usage
        )

    async def run_async(self, call):
        return call()


def another_model(dim: int):
    """An orthogonal matrix: all cosines stay what they are, no vector stays where it is."""
    turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(dim, dim)))
    return turn.astype(np.float32)
