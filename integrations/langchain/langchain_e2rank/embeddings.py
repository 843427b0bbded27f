"""E2RankEmbeddings: the model as LangChain's Embeddings."""

from __future__ import annotations

from langchain_core.embeddings import Embeddings

from langchain_e2rank._shared import E2RankModel


class E2RankEmbeddings(E2RankModel, Embeddings):
    """Makes vectors of unit length for documents and queries; see `E2RankModel` for the parameters.

    embeddings = E2RankEmbeddings(model="e2rank-minilm")
    vector = embeddings.embed_query("does vitamin D prevent falls?")
    """

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """One vector per text."""
        vectors: list[list[float]] = self.encoder.encode_documents(texts).tolist()
        return vectors

    def embed_query(self, text: str) -> list[float]:
        """The vector of a query. Causal models read their instruction before it."""
        vector: list[float] = self.encoder.encode_queries([text])[0].tolist()
        return vector

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """`embed_documents` without blocking the event loop."""
        encoder = await self.aencoder()
        vectors: list[list[float]] = (await encoder.aencode_documents(texts)).tolist()
        return vectors

    async def aembed_query(self, text: str) -> list[float]:
        """`embed_query` without blocking the event loop."""
        encoder = await self.aencoder()
        vector: list[float] = (await encoder.aencode_queries([text]))[0].tolist()
        return vector
