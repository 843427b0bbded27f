"""QdrantStore: documents with one vector each in Qdrant, in memory, in a folder or on a server.

    store = QdrantStore.open("./index", "news")
    store.prepare(encoder.dim, fingerprint=encoder.fingerprint, model="all-MiniLM-L6-v2")
    store.upsert(documents, encoder.encode_documents([d.text for d in documents]))
    hits = store.search(encoder.encode_queries(["storm in the north"])[0], top_k=10)

qdrant-haystack reads, overwrites and deletes the same points; langchain-qdrant reads them.
Local mode is Python code that reads every point; use it for up to about 20,000 documents.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

from qdrant_client import models

from e2rank_rag.store.answers import Points
from e2rank_rag.store.collection import DEFAULT_LAYOUT, Collection
from e2rank_rag.store.schema import Schema
from e2rank_rag.store.sparse import SparseWords
from e2rank_rag.store.vectors import one_row
from e2rank_rag.types import (
    Document,
    Embeddings,
    Filter,
    Fusion,
    Hit,
    HybridStore,
    StoredDocument,
)
from e2rank_rag.words import SparseVector, mostly_unspaced

__all__ = ["DEFAULT_LAYOUT", "QdrantStore"]

logger = logging.getLogger(__name__)


class QdrantStore(Collection):
    """A collection of a Qdrant client, as `e2rank_rag.types.Store`.

    client: an open client, which is not closed with the store; or the arguments of a QdrantClient,
        which is then opened at first use and closed with the store.
    async_client: on the same server, for the async methods; without it they run in a thread.
    layout: where a point keeps id, text and meta.
    vector_name: the name of the vector, in a collection whose vectors have names.
    collection_options: arguments of QdrantClient.create_collection for a new collection, such as
        hnsw_config, quantization_config, shard_number.
    bm25: gives a new collection a sparse vector beside the dense one, for hybrid search, and is
        recorded there: a later store uses it by itself. For a collection that another tool wrote,
        it says that the sparse vector `bm25_name` holds BM25 of these settings.
    bm25_name: the name of that sparse vector.

    In local mode a copy shares the client; on a server it opens its own. Closing one leaves the
    other open. A pickle opens folder or server again at first use, and holds the API key. A store
    in memory cannot be pickled, nor one whose `async_client` has other settings.

    Scores are cosines. (A collection with the distance Dot chooses its `top_k` by dot products,
    which are the same if the stored vectors have unit length.)
    """

    def check(self, documents: Sequence[Document]) -> None:
        """Raise the ValueErrors of `upsert`, for documents to be written in several calls."""
        self._requests.check(documents)

    def upsert(self, documents: Sequence[Document], embeddings: Embeddings) -> None:
        """Write documents with their vectors [n, dim], in place of documents with the same ids.

        A replaced document keeps its other vectors, and its payload under other keys.

        Raises before anything is written: ValueError, naming the document, for a repeated id, a
        text or meta that JSON cannot hold, and a vector that is not finite or zero;
        StoredVectorMismatch if the collection has another model's record since `prepare`.
        """
        if len(documents) or len(embeddings):
            schema = self._as_agreed(self._connection.send(self._requests.schema()))
            points = self._requests.points(documents, embeddings, schema)
            self._tell_of_unspaced(documents, schema)
            kept = self._send_all(self._requests.kept(points, schema))
            self._tell_of_kept(kept, schema)
            self._send_all(self._requests.upsert(points, kept))

    def update_meta(self, documents: Sequence[Document]) -> None:
        """Replace the meta of stored documents; text and vector do not change.

        StoreError, naming missing documents, before anything is written.
        """
        updates = self._requests.update_meta(documents)
        lookups = self._requests.retrieve([d.id for d in documents], payload=False)
        self._requests.refuse_absent(documents, self._send_all(lookups))
        self._send_all(updates)

    def search(
        self, embedding: Embeddings, *, top_k: int, filter: Filter | models.Filter | None = None
    ) -> list[Hit]:
        """The `top_k` nearest documents to a vector [dim], with their vectors, best first."""
        return self.search_batch(one_row(embedding), top_k=top_k, filter=filter)[0]

    def search_batch(
        self,
        embeddings: Embeddings,
        *,
        top_k: int,
        filter: Filter | models.Filter | None = None,
        queries: Sequence[str] | None = None,
        fusion: Fusion = "rrf",
    ) -> list[list[Hit]]:
        """`search` for every row of [n, dim]: one request, or a few if the answers are large.

        queries: the text of each row, for a hybrid search: Qdrant makes one ranking of the `top_k`
            nearest documents and the `top_k` best by BM25, and the score is that of the fusion. A
            query without words (all are stop words, say) is searched by its vector alone, with
            cosines as scores.
        fusion: see `types.Fusion`.

        StoreError for `queries` if the collection has no sparse vector of words.
        """
        wanted = self._requests.wanted(top_k, filter, self._known_schema())
        requests = self._requests.search(embeddings, wanted, queries=queries, fusion=fusion)
        return _flat(self._send_all(requests))

    def search_words_batch(
        self,
        queries: Sequence[str],
        *,
        top_k: int,
        filter: Filter | models.Filter | None = None,
    ) -> list[list[Hit]]:
        """The `top_k` best documents by BM25 for each query, which share a word with it.

        The hits have their vectors, and BM25 scores. A query without words has no hits.
        """
        wanted = self._requests.wanted(top_k, filter, self._known_schema())
        vectors = self._requests.words_of(queries, wanted.schema)
        requests = self._requests.search_words([v for v in vectors if v.indices], wanted)
        return _in_order(vectors, self._send_all(requests))

    def rescore(self, embedding: Embeddings, ids: Sequence[str]) -> list[Hit]:
        """These documents with cosines to a vector [dim], best first; unknown ids are left out.

        One request that transfers no vectors: `Hit.embedding` is None.
        """
        if not len(ids):
            return []
        requests = self._requests.rescore(embedding, ids, self._known_schema())
        return _best_first(self._send_all(requests))

    def get(
        self, ids: Sequence[str], *, with_embeddings: bool = False
    ) -> dict[str, StoredDocument]:
        """The documents with these ids, in this order; unknown ids are left out."""
        schema = self._known_schema() if with_embeddings and len(ids) else None
        answers = self._send_all(self._requests.retrieve(ids, vectors=with_embeddings))
        return self._requests.stored(ids, answers, schema)

    def ids(self) -> Iterator[str]:
        """All document ids, read page by page, in no particular order."""
        return self._pages()

    def ids_without_words(self) -> Iterator[str]:
        """Ids of documents without a sparse vector: another tool wrote them, or they have no words.

        None in a collection whose documents have none at all.
        """
        words = self._known_schema().words
        return iter(()) if words is None else self._pages(lacking=words)

    def write_words(self, documents: Sequence[Document]) -> int:
        """Write the sparse vectors of stored documents with these texts, which do not change.

        Returns how many of them have words. StoreError for a collection without sparse vectors.
        """
        schema = self._as_agreed(self._connection.send(self._requests.schema()))
        requests = self._requests.write_words(documents, schema)
        self._tell_of_unspaced(documents, schema)
        return sum(self._send_all(requests))

    def delete(self, ids: Sequence[str]) -> None:
        """Remove documents; unknown ids are no error."""
        self._send_all(self._requests.delete(ids))

    def count(self, filter: Filter | models.Filter | None = None) -> int:
        """The exact number of documents."""
        return self._connection.send(self._requests.count(filter))

    async def aupsert(self, documents: Sequence[Document], embeddings: Embeddings) -> None:
        """`upsert` without blocking the event loop."""
        if len(documents) or len(embeddings):
            schema = self._as_agreed(await self._connection.asend(self._requests.schema()))
            # Checking and converting a large batch takes longer than an event loop should wait.
            points = await asyncio.to_thread(self._requests.points, documents, embeddings, schema)
            self._tell_of_unspaced(documents, schema)
            kept = await self._asend_all(self._requests.kept(points, schema))
            self._tell_of_kept(kept, schema)
            await self._asend_all(await asyncio.to_thread(self._requests.upsert, points, kept))

    async def aupdate_meta(self, documents: Sequence[Document]) -> None:
        updates = self._requests.update_meta(documents)
        lookups = self._requests.retrieve([d.id for d in documents], payload=False)
        self._requests.refuse_absent(documents, await self._asend_all(lookups))
        await self._asend_all(updates)

    async def asearch(
        self, embedding: Embeddings, *, top_k: int, filter: Filter | models.Filter | None = None
    ) -> list[Hit]:
        return (await self.asearch_batch(one_row(embedding), top_k=top_k, filter=filter))[0]

    async def asearch_batch(
        self,
        embeddings: Embeddings,
        *,
        top_k: int,
        filter: Filter | models.Filter | None = None,
        queries: Sequence[str] | None = None,
        fusion: Fusion = "rrf",
    ) -> list[list[Hit]]:
        wanted = self._requests.wanted(top_k, filter, await self._aknown_schema())
        requests = self._requests.search(embeddings, wanted, queries=queries, fusion=fusion)
        return _flat(await self._asend_all(requests))

    async def asearch_words_batch(
        self,
        queries: Sequence[str],
        *,
        top_k: int,
        filter: Filter | models.Filter | None = None,
    ) -> list[list[Hit]]:
        wanted = self._requests.wanted(top_k, filter, await self._aknown_schema())
        vectors = self._requests.words_of(queries, wanted.schema)
        requests = self._requests.search_words([v for v in vectors if v.indices], wanted)
        return _in_order(vectors, await self._asend_all(requests))

    async def arescore(self, embedding: Embeddings, ids: Sequence[str]) -> list[Hit]:
        if not len(ids):
            return []
        schema = await self._aknown_schema()
        return _best_first(await self._asend_all(self._requests.rescore(embedding, ids, schema)))

    async def aget(
        self, ids: Sequence[str], *, with_embeddings: bool = False
    ) -> dict[str, StoredDocument]:
        schema = await self._aknown_schema() if with_embeddings and len(ids) else None
        answers = await self._asend_all(self._requests.retrieve(ids, vectors=with_embeddings))
        return self._requests.stored(ids, answers, schema)

    async def adelete(self, ids: Sequence[str]) -> None:
        await self._asend_all(self._requests.delete(ids))

    async def acount(self, filter: Filter | models.Filter | None = None) -> int:
        return await self._connection.asend(self._requests.count(filter))

    def _pages(self, *, lacking: SparseWords | None = None) -> Iterator[str]:
        offset: Any = None
        while True:
            page, offset = self._connection.send(self._requests.scroll(offset, lacking=lacking))
            yield from page
            if offset is None:
                return

    def _tell_of_unspaced(self, documents: Sequence[Document], schema: Schema) -> None:
        if self._told_of_unspaced or schema.words is None:
            return
        if not mostly_unspaced([document.text for document in documents]):
            return
        self._told_of_unspaced = True
        logger.warning(
            "%s: most of this text is in a script without spaces between words (such as Chinese, "
            "Japanese or Thai), where a search by words finds whole phrases only: split the text "
            "into words first, or search with hybrid=False",
            self.name,
        )

    def _tell_of_kept(self, kept: Sequence[Points], schema: Schema) -> None:
        if self._told_of_kept or not any(point.vector for points in kept for point in points):
            return
        self._told_of_kept = True
        logger.warning(
            "%s: documents that are written again keep their other vectors %s, which were made "
            "from their text before: write these again too if the text has changed",
            self.name,
            list(schema.other_vectors),
        )


def _best_first(rankings: Sequence[list[Hit]]) -> list[Hit]:
    return sorted(chain.from_iterable(rankings), key=lambda hit: -hit.score)


def _flat(rankings: Sequence[list[list[Hit]]]) -> list[list[Hit]]:
    return list(chain.from_iterable(rankings))


def _in_order(
    vectors: Sequence[SparseVector], rankings: Sequence[list[list[Hit]]]
) -> list[list[Hit]]:
    """The rankings of the queries with words, and empty ones of those without."""
    found = iter(_flat(rankings))
    return [next(found) if vector.indices else [] for vector in vectors]


if TYPE_CHECKING:
    _fits: type[HybridStore] = QdrantStore
