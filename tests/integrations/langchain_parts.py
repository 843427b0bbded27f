"""What the LangChain tests share: documents, stock retrievers, and an event loop that counts."""

from __future__ import annotations

import asyncio
import contextlib

import bm25s
import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.retrievers import BaseRetriever
from pydantic import PrivateAttr

TEXTS = [
    "cats purr, cats sleep, cats purr again",
    "dogs bark, dogs dig, dogs bark again",
    "A ferry crosses the strait four times a day.",
    "The oldest bridge carries trams and bicycles.",
    "Bread rises because yeast turns sugar into carbon dioxide.",
    "A prime number has no divisors but one and itself.",
    "Glaciers move downhill under their own weight.",
    "To reset the router, hold the button for ten seconds.",
]
KINDS = ["animal", "animal", "traffic", "traffic", "food", "number", "ice", "machine"]
IDS = ["cats", "dogs", "ferry", "bridge", "bread", "prime", "ice", "router"]
QUERY = "Which animals purr?"


def documents():
    return [
        Document(id=id, page_content=text, metadata={"kind": kind})
        for id, text, kind in zip(IDS, TEXTS, KINDS, strict=True)
    ]


class Bm25(BaseRetriever):
    """BM25 over a list of documents."""

    docs: list[Document]
    k: int = 4
    _index: object = PrivateAttr()

    def model_post_init(self, context):
        self._index = bm25s.BM25()
        tokens = bm25s.tokenize([d.page_content for d in self.docs], show_progress=False)
        self._index.index(tokens, show_progress=False)

    def _get_relevant_documents(self, query, *, run_manager):
        tokens = bm25s.tokenize(query, show_progress=False)
        found, _ = self._index.retrieve(tokens, k=self.k, show_progress=False)
        return [self.docs[place] for place in found[0]]


class EncoderEmbeddings(Embeddings):
    """Somebody else's embeddings: they name no model that could be recorded."""

    def __init__(self, encoder):
        self.encoder = encoder

    def embed_documents(self, texts):
        return self.encoder.encode_documents(texts).tolist()

    def embed_query(self, text):
        return self.encoder.encode_queries([text])[0].tolist()


async def ticks_during(awaitable):
    """How often the event loop came round while something was awaited."""
    task = asyncio.ensure_future(awaitable)
    ticks = 0
    while not task.done():
        await asyncio.sleep(0.002)
        ticks += 1
    await task
    return ticks


def contents(found):
    return [document.page_content for document in found]


def scores(found):
    return [document.metadata["relevance_score"] for document in found]


def same(ranking, other):
    """The same documents in the same order, scores as near as two computations come."""
    return contents(ranking) == contents(other) and scores(ranking) == pytest.approx(
        scores(other), abs=1e-5
    )


@contextlib.contextmanager
def closing(component):
    yield component
    component.close()
