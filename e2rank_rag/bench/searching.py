"""What the sides of several parts open: documents, encoders, and an index of stored vectors."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from e2rank_rag.bench.settings import MAX_LENGTH
from e2rank_rag.bench.sides import Answer
from e2rank_rag.data import shipped_collection
from e2rank_rag.evaluation.collections import Collection
from e2rank_rag.types import Document

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from e2rank_rag.models.encoder import Encoder
    from e2rank_rag.store import Layout, QdrantStore
    from e2rank_rag.types import Embeddings

VECTORS, CROSS_ENCODER = "vectors.npy", "cross-encoder"
COLLECTION = "e2rank-bench"


def dataset(data: str | None) -> Collection:
    """The BEIR folder of this name; None: SciFact."""
    return shipped_collection("scifact") if data is None else Collection.open(data)


def first_documents(data: str | None, count: int) -> list[Document]:
    """The first documents of a dataset."""
    return list(itertools.islice(dataset(data).documents(), count))


def queries_of(data: str | None) -> Iterator[str]:
    """Queries of a dataset without end, none twice, since a query's vector is cached.

    When all were given, they come again with a number in front.
    """
    texts = _queries(data)
    again = (f"{round} {text}" for round in itertools.count(1) for text in texts)
    return itertools.chain(texts, again)


@cache
def _queries(data: str | None) -> tuple[str, ...]:
    return tuple(dict.fromkeys(dataset(data).queries().values()))


def open_encoder(model: str, dtype: str) -> Encoder:
    """The encoder on the CPU, at the length of all comparisons or its own if that is shorter."""
    from e2rank_rag.models.encoder import Encoder

    options: dict[str, Any] = {"dtype": dtype, "device": "cpu"}
    encoder = Encoder.from_pretrained(model, **options)
    length = longest(encoder.weights_folder)
    lengths = {"query_tokens": length, "document_tokens": length}
    with encoder:
        return encoder.with_recipe(encoder.recipe.model_copy(update=lengths))


def about_encoder(encoder: Encoder) -> dict[str, Any]:
    """Threads, dtype and length of an encoder, as it computes."""
    import torch

    loaded = encoder.loaded
    return {
        "threads": loaded.worker.run(torch.get_num_threads),
        "dtype": str(next(loaded.transformer.parameters()).dtype).removeprefix("torch."),
        "max_length": encoder.recipe.document_tokens,
    }


def longest(weights: Path) -> int:
    """The length of all comparisons in tokens, or what these weights can place if that is less."""
    from transformers import AutoConfig

    from e2rank_rag.models.config import positions

    return min(MAX_LENGTH, positions(AutoConfig.from_pretrained(weights)))


def open_sentence_transformer(weights: Path, kind: str) -> SentenceTransformer:
    """These weights in sentence-transformers, at the length of our encoder.

    kind: "openvino", or the dtype of its torch backend.
    """
    import torch
    from sentence_transformers import SentenceTransformer

    folder = str(weights)
    if kind == "openvino":
        if not (find_spec("optimum") and find_spec("openvino")):
            raise ImportError('not installed: pip install "sentence-transformers[openvino]"')
        config = {"INFERENCE_NUM_THREADS": torch.get_num_threads()}
        kwargs: dict[str, Any] = {"ov_config": config}
        opened = SentenceTransformer(folder, device="cpu", backend="openvino", model_kwargs=kwargs)
    else:
        kwargs = {"dtype": getattr(torch, kind)}
        opened = SentenceTransformer(folder, device="cpu", model_kwargs=kwargs)
    opened.max_seq_length = longest(weights)
    return opened


def weights_folder(model: str) -> Path:
    """The folder of the weights that read queries and documents."""
    from e2rank_rag.models.encoder import Encoder

    with Encoder.from_pretrained(model, device="cpu") as encoder:
        return encoder.weights_folder


def prepare(
    model: str, data: str | None, documents: int, folder: str
) -> tuple[dict[str, Any], Answer]:
    """Write the vectors of the first documents into the folder, and a cross-encoder.

    The cross-encoder has the encoder's weights and a head of random ones: it costs what a trained
    one of this shape costs, and its scores mean nothing.
    """
    import numpy as np

    encoder = open_encoder(model, "auto")
    texts = [document.text for document in first_documents(data, documents)]
    vectors = encoder.encode_documents(texts, on_cut=lambda _: None, progress=False)
    np.save(Path(folder) / VECTORS, vectors)
    write_cross_encoder(encoder.weights_folder, Path(folder) / CROSS_ENCODER)
    return {"documents": len(texts)}, lambda: None


def write_cross_encoder(weights: Path, folder: Path) -> None:
    """Save a classifier with one label over these weights, with its tokenizer."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()  # that the head is new is meant
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(weights, num_labels=1)
    tokenizer = AutoTokenizer.from_pretrained(weights)
    tokenizer.model_max_length = longest(weights)
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def stored(folder: str, data: str | None, documents: int) -> tuple[list[Document], Embeddings]:
    """The documents of the prepared index, and their vectors."""
    import numpy as np

    vectors: Embeddings = np.load(Path(folder) / VECTORS)
    return first_documents(data, documents), vectors


def open_index(
    encoder: Encoder | None,
    documents: Sequence[Document],
    vectors: Embeddings,
    *,
    words: bool,
    location: str = ":memory:",
    collection: str = COLLECTION,
    layout: Layout | None = None,
) -> QdrantStore:
    """A new collection with these documents and vectors.

    encoder: whose fingerprint the store records. words: whether it holds words, too. A server's key
    is the variable QDRANT_API_KEY.
    """
    from e2rank_rag.store import Layout, QdrantStore
    from e2rank_rag.store.opening import kind_of
    from e2rank_rag.words import Bm25

    server = kind_of(location) == "server"
    store = QdrantStore.open(
        location,
        collection,
        api_key=os.environ.get("QDRANT_API_KEY") if server else None,
        layout=layout or Layout(),
        bm25=Bm25() if words else None,
    )
    store.prepare(vectors.shape[1], fingerprint=None if encoder is None else encoder.fingerprint)
    for begin in range(0, len(documents), 1000):
        part = slice(begin, begin + 1000)
        store.upsert(documents[part], vectors[part])
    return store
