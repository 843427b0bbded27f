"""The chains that others offer: a dense retriever and a cross-encoder, of stock classes.

Each searches the prepared vectors in a Qdrant in memory, and reranks with the prepared
cross-encoder. Batch sizes are as they come, but for sentence-transformers alone, which takes its
best of 8, 32 and 128.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from e2rank_rag.bench.candidates import TOP_K, answering
from e2rank_rag.bench.pairs import seconds
from e2rank_rag.bench.searching import (
    COLLECTION,
    CROSS_ENCODER,
    open_index,
    open_sentence_transformer,
    stored,
    weights_folder,
)
from e2rank_rag.bench.sides import Answer

BATCH_SIZES = (8, 32, 128)


def sentence_transformers(
    model: str, data: str | None, documents: int, folder: str, dtype: str, queries: int
) -> tuple[dict[str, Any], Answer]:
    """A `SentenceTransformer` for the query, Qdrant's client, and a `CrossEncoder`."""
    encoder = open_sentence_transformer(weights_folder(model), dtype)
    cross_encoder = _cross_encoder(folder, dtype)
    records, vectors = stored(folder, data, documents)
    store = open_index(None, records, vectors, words=False)

    def fetch(query: str, candidates: int) -> list[str]:
        (vector,) = encoder.encode([query], show_progress_bar=False)
        found = store.client.query_points(COLLECTION, query=vector, limit=candidates)
        return [(point.payload or {})["content"] for point in found.points]

    pairs = [("what is this about?", record.text) for record in records[:64]]
    batch_size = min(
        BATCH_SIZES, key=lambda size: seconds(lambda: cross_encoder.predict(pairs, batch_size=size))
    )

    def ask(query: str, candidates: int) -> None:
        texts = fetch(query, candidates)
        cross_encoder.rank(
            query, texts, top_k=TOP_K, batch_size=batch_size, show_progress_bar=False
        )

    def tokens(query: str, candidates: int) -> int:
        texts = fetch(query, candidates)
        read = cross_encoder.tokenizer([query] * len(texts), texts, truncation=True)["input_ids"]
        return sum(map(len, read)) + len(encoder.tokenizer(query, truncation=True)["input_ids"])

    return {**_about(dtype, folder), "batch_size": batch_size}, answering(
        data, queries, ask, tokens
    )


def haystack(
    model: str, data: str | None, documents: int, folder: str, dtype: str, queries: int
) -> tuple[dict[str, Any], Answer]:
    """Text embedder, `QdrantEmbeddingRetriever` and `SentenceTransformersSimilarityRanker`."""
    import torch
    from haystack import Document, Pipeline
    from haystack.utils import ComponentDevice
    from haystack_integrations.components.retrievers.qdrant import QdrantEmbeddingRetriever
    from haystack_integrations.document_stores.qdrant import QdrantDocumentStore

    records, vectors = stored(folder, data, documents)
    store = QdrantDocumentStore(
        ":memory:", embedding_dim=vectors.shape[1], progress_bar=False, wait_result_from_api=True
    )
    store.write_documents(
        [
            Document(id=record.id, content=record.text, embedding=vector.tolist())
            for record, vector in zip(records, vectors, strict=True)
        ]
    )
    options: dict[str, Any] = {
        "model_kwargs": {"torch_dtype": getattr(torch, dtype)},
        "device": ComponentDevice.from_str("cpu"),
    }
    embedder = _haystack_class("embedders", "SentenceTransformersTextEmbedder")(
        model=str(weights_folder(model)), progress_bar=False, **options
    )
    ranker = _haystack_class("rankers", "SentenceTransformersSimilarityRanker")(
        model=str(Path(folder) / CROSS_ENCODER), top_k=TOP_K, **options
    )
    pipeline = Pipeline()
    pipeline.add_component("embedder", embedder)
    pipeline.add_component("retriever", QdrantEmbeddingRetriever(store))
    pipeline.add_component("ranker", ranker)
    pipeline.connect("embedder.embedding", "retriever.query_embedding")
    pipeline.connect("retriever.documents", "ranker.documents")

    def ask(query: str, candidates: int) -> None:
        pipeline.run(
            {
                "embedder": {"text": query},
                "retriever": {"top_k": candidates},
                "ranker": {"query": query},
            }
        )

    ask("what is this about?", 2)
    return _about(dtype, folder), answering(data, queries, ask)


def _haystack_class(kind: str, name: str) -> Any:
    """From its package in Haystack 3, or from Haystack 2 itself."""
    try:
        module = import_module(f"haystack_integrations.components.{kind}.sentence_transformers")
    except ModuleNotFoundError:
        module = import_module(f"haystack.components.{kind}")
        if not hasattr(module, name):
            raise ImportError(
                "Haystack's cross-encoder is in a package: pip install "
                "sentence-transformers-haystack"
            ) from None
    return getattr(module, name)


def langchain(
    model: str, data: str | None, documents: int, folder: str, dtype: str, queries: int
) -> tuple[dict[str, Any], Answer]:
    """`QdrantVectorStore` and `CrossEncoderReranker` in a `ContextualCompressionRetriever`.

    The embeddings and the cross-encoder are what langchain-huggingface and langchain-community
    make of sentence-transformers.
    """
    from langchain_classic.retrievers import ContextualCompressionRetriever
    from langchain_classic.retrievers.document_compressors import CrossEncoderReranker
    from langchain_core.cross_encoders import BaseCrossEncoder
    from langchain_core.embeddings import Embeddings
    from langchain_qdrant import QdrantVectorStore

    from e2rank_rag.store import LANGCHAIN_LAYOUT

    encoder = open_sentence_transformer(weights_folder(model), dtype)
    cross_encoder = _cross_encoder(folder, dtype)

    class Encoder(Embeddings):
        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            return encoder.encode(texts, show_progress_bar=False).tolist()  # type: ignore[no-any-return]

        def embed_query(self, text: str) -> list[float]:
            return self.embed_documents([text])[0]

    class Pairs(BaseCrossEncoder):
        def score(self, text_pairs: list[tuple[str, str]]) -> list[float]:
            return cross_encoder.predict(text_pairs, show_progress_bar=False)  # type: ignore[no-any-return]

    written = open_index(
        None, *stored(folder, data, documents), words=False, layout=LANGCHAIN_LAYOUT
    )
    store = QdrantVectorStore(written.client, COLLECTION, Encoder())
    compressor = CrossEncoderReranker(model=Pairs(), top_n=TOP_K)

    def ask(query: str, candidates: int) -> None:
        ContextualCompressionRetriever(
            base_compressor=compressor,
            base_retriever=store.as_retriever(search_kwargs={"k": candidates}),
        ).invoke(query)

    ask("what is this about?", 2)
    return _about(dtype, folder), answering(data, queries, ask)


def _cross_encoder(folder: str, dtype: str) -> Any:
    import torch
    from sentence_transformers import CrossEncoder

    return CrossEncoder(
        str(Path(folder) / CROSS_ENCODER),
        device="cpu",
        model_kwargs={"dtype": getattr(torch, dtype)},
    )


def _about(dtype: str, folder: str) -> dict[str, Any]:
    """Threads, dtype and length; the tokenizer of the cross-encoder says the length."""
    import torch
    from transformers import AutoTokenizer

    length = AutoTokenizer.from_pretrained(Path(folder) / CROSS_ENCODER).model_max_length
    return {"threads": torch.get_num_threads(), "dtype": dtype, "max_length": length}
