"""Documents with titles and years, and collections of them as other tools write them."""

from __future__ import annotations

import numpy as np
from qdrant_client import QdrantClient, models

from e2rank_rag.check.outline import FoundLayout
from e2rank_rag.check.sample import Sample, StoredText
from e2rank_rag.store import Layout, QdrantStore
from e2rank_rag.types import Document

SENTENCES = [
    "A ferry crosses the strait between the two islands four times a day.",
    "The oldest bridge over the river was built in 1387 and carries trams.",
    "Bread rises because yeast turns sugar into carbon dioxide.",
    "A prime number has no divisors but one and itself: 2, 3, 5, 7, 11.",
    "Glaciers move downhill under their own weight, a few metres a year.",
    "To reset the router, hold the button for ten seconds, then wait.",
    "Cats purr, cats sleep, cats purr again.",
    "Dogs bark, dogs dig, dogs bark again.",
]
TITLES = ["Ferries", "Old bridges", "Baking", "Numbers", "Ice", "Routers", "Cats", "Dogs"]

CONTENTS = [" ".join((SENTENCES[n:] + SENTENCES[:n])[: 1 + n % 8]) for n in range(8)]
"""One to eight sentences, the longest some 130 tokens of the tiny models."""

DOCUMENTS = [
    Document(f"d{n}", text, {"title": TITLES[n], "year": 2001 + n})
    for n, text in enumerate(CONTENTS)
]


def sample_of(vectors, documents=DOCUMENTS):
    """A sample of these documents with these vectors [n, dim], of any length."""
    rows = np.asarray(vectors, dtype=np.float64)
    lengths = np.linalg.norm(rows, axis=1)
    texts = [
        StoredText(
            id=document.id,
            content=document.text,
            fields={key: str(value) for key, value in document.meta.items()},
            vector=(row / length).astype(np.float32),
            length=float(length),
            sparse={},
        )
        for document, row, length in zip(documents, rows, lengths, strict=True)
    ]
    layout = FoundLayout("e2rank_rag", Layout(), ("id", "content", "meta"))
    ordered = tuple(sorted(texts, key=lambda text: len(text.content)))
    return Sample(layout, ordered, (), unusable=0, drawn_from=len(texts))


def turned(vectors, seed=0):
    """The vectors of another model: the same distances, other directions."""
    generator = np.random.default_rng(seed)
    turn, _ = np.linalg.qr(generator.normal(size=(vectors.shape[1], vectors.shape[1])))
    return vectors @ turn


def fill(location, vectors, *, documents=DOCUMENTS, collection="notes", layout=None, **options):
    """A collection of these documents, without a record of a model."""
    store = QdrantStore.open(location, collection, layout=layout or Layout(), **options)
    store.prepare(vectors.shape[1])
    store.upsert(documents, np.asarray(vectors, dtype=np.float32))
    return store


def raw_collection(folder, payloads, vectors, *, config=None, collection="notes", sparse=None):
    """A collection with any payloads and any configuration of its vectors."""
    client = QdrantClient(path=str(folder))
    config = config or models.VectorParams(size=len(vectors[0]), distance=models.Distance.COSINE)
    client.create_collection(collection, vectors_config=config, sparse_vectors_config=sparse)
    points = [
        models.PointStruct(
            id=number,
            vector=vector if isinstance(vector, dict) else list(map(float, vector)),
            payload=payload,
        )
        for number, (payload, vector) in enumerate(zip(payloads, vectors, strict=True), start=1)
    ]
    if points:
        client.upsert(collection, points)
    client.close()
    return folder
