"""SearchPipeline: encode the query, search the store, rerank with the stored vectors.

pipeline = SearchPipeline(encoder, store, ListwiseReranker(encoder))
hits = pipeline.search("does vitamin D prevent falls?", top_k=10)
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, get_args

from e2rank_rag.errors import StoredVectorMismatch, StoreError
from e2rank_rag.rerankers.base import BaseReranker, Reranking, VectorReranker
from e2rank_rag.rerankers.ranking import score_lists
from e2rank_rag.retrieved import has_no_direction, most_excluded, short_by, without
from e2rank_rag.types import (
    Embeddings,
    Filter,
    Fusion,
    Hit,
    Hybrid,
    Reranker,
    Store,
    TextEncoder,
)
from e2rank_rag.vectors import CandidateVectors, HitsOrIds, StoredVectors, ids_of, stored_hits


def check_hybrid(hybrid: Hybrid | None) -> None:
    """ValueError for a value of `hybrid` that no search takes."""
    if hybrid not in (None, False, True, *get_args(Fusion)):
        raise ValueError(
            f"hybrid must be True, False, None or one of {get_args(Fusion)}, got {hybrid!r}"
        )


class SearchPipeline:
    """One encoder, one store and, if wanted, one reranker.

    Each search compares the store's recorded fingerprint with the encoder's. If the store has no
    record, it probes some of the vectors. `stored_vectors="trust"` leaves both checks out.
    """

    def __init__(
        self,
        encoder: TextEncoder,
        store: Store,
        reranker: Reranker | None = None,
        *,
        stored_vectors: StoredVectors = "check",
    ) -> None:
        self._own_vectors = CandidateVectors(encoder, stored_vectors)
        self.store = store
        self.reranker = reranker

    @property
    def encoder(self) -> TextEncoder:
        """Encodes the queries, and checks the stored vectors."""
        return self._own_vectors.encoder

    @property
    def _reads_vectors(self) -> bool:
        """Whether the reranker reads the candidates' vectors, which it then checks itself."""
        return self._vectors is not self._own_vectors

    @property
    def _vectors(self) -> CandidateVectors:
        """What gives candidates their vectors: the reranker's own, if it reads any."""
        vectors: CandidateVectors | None = getattr(self.reranker, "vectors", None)
        return self._own_vectors if vectors is None else vectors

    def search(
        self,
        query: str,
        *,
        top_k: int = 10,
        retrieve_k: int = 100,
        filter: Filter | Any | None = None,
        expand: bool = False,
        candidates: HitsOrIds | None = None,
        hybrid: Hybrid | None = None,
        explain: bool = False,
    ) -> list[Hit]:
        """The `top_k` best documents for one query; see `search_batch`."""
        lists = None if candidates is None else [candidates]
        return self.search_batch(
            [query],
            top_k=top_k,
            retrieve_k=retrieve_k,
            filter=filter,
            expand=expand,
            candidates=lists,
            hybrid=hybrid,
            explain=explain,
        )[0]

    def search_batch(
        self,
        queries: Sequence[str],
        *,
        top_k: int = 10,
        retrieve_k: int = 100,
        filter: Filter | Any | None = None,
        expand: bool = False,
        candidates: Sequence[HitsOrIds] | None = None,
        exclude: Sequence[Collection[str]] | None = None,
        hybrid: Hybrid | None = None,
        explain: bool = False,
    ) -> list[list[Hit]]:
        """The `top_k` best documents for each query, best first, with their embeddings.

        retrieve_k: documents to retrieve for the reranker; without a reranker `top_k` counts.
        filter: conditions on meta (see `types.Filter`), or a native filter of the store. It applies
            to both searches, not to `candidates`.
        expand: search a second time with the reranking vector, and rank the documents of both
            searches as the reranker scores them with it, as one list.
        candidates: rerank these instead of searching: per query, hits or ids of documents in the
            store, best first. Their vectors are read from the store by id, even if a hit has its
            own. A document is encoded if the store lacks it or holds it with another text.
        exclude: per query, ids of documents that are left out before the reranking.
        hybrid: whether the searches use the words of the query beside its vector, and how the two
            rankings become one: True is "rrf" (see `types.Fusion`). None: where the store can. The
            scores of a hybrid search without a reranker are those of the fusion.
        explain: give each hit an `Explanation` of its score and rank; ValueError without a
            reranker of `e2rank_rag`.

        Raises StoredVectorMismatch when the store's vectors are not the encoder's, StoreError for
        `hybrid` if the collection has no words.
        """
        self._check_arguments(top_k, retrieve_k, expand, explain)
        most = most_excluded(queries, exclude)
        self._check_store()
        words = self._words(queries, hybrid)
        plain = None
        if candidates is None:
            plain = self.encoder.encode_queries(queries)
            depth = self._depth(top_k, retrieve_k)
            asked, short = 0, depth + most
            while short > 0:
                asked += short
                found = self.store.search_batch(plain, top_k=asked, filter=filter, **words)
                short = short_by(found, asked, depth + most)
            found = without(self._mended(found, plain, words), exclude, depth)
        else:
            stored = self.store.get(ids_of(queries, candidates), with_embeddings=True)
            found = without(stored_hits(candidates, stored, self.store.name), exclude)
        ranked = self._order(queries, found, plain, explain)
        if expand:
            better = self._reranking_vectors(queries, ranked, plain)
            more = self.store.search_batch(better, top_k=retrieve_k + most, filter=filter, **words)
            merged = self._merge(queries, ranked, without(more, exclude, retrieve_k), better, plain)
            ranked = self._explained(queries, merged, found, ranked, explain)
        return [hits[:top_k] for hits in ranked]

    async def asearch(
        self,
        query: str,
        *,
        top_k: int = 10,
        retrieve_k: int = 100,
        filter: Filter | Any | None = None,
        expand: bool = False,
        candidates: HitsOrIds | None = None,
        hybrid: Hybrid | None = None,
        explain: bool = False,
    ) -> list[Hit]:
        """`search` without blocking the event loop."""
        rankings = await self.asearch_batch(
            [query],
            top_k=top_k,
            retrieve_k=retrieve_k,
            filter=filter,
            expand=expand,
            candidates=None if candidates is None else [candidates],
            hybrid=hybrid,
            explain=explain,
        )
        return rankings[0]

    async def asearch_batch(
        self,
        queries: Sequence[str],
        *,
        top_k: int = 10,
        retrieve_k: int = 100,
        filter: Filter | Any | None = None,
        expand: bool = False,
        candidates: Sequence[HitsOrIds] | None = None,
        exclude: Sequence[Collection[str]] | None = None,
        hybrid: Hybrid | None = None,
        explain: bool = False,
    ) -> list[list[Hit]]:
        """`search_batch` without blocking the event loop."""
        self._check_arguments(top_k, retrieve_k, expand, explain)
        most = most_excluded(queries, exclude)
        await asyncio.to_thread(self._check_store)
        words = await asyncio.to_thread(self._words, queries, hybrid)
        run = self.encoder.run_async
        plain = None
        if candidates is None:
            plain = await run(partial(self.encoder.encode_queries, queries))
            depth = self._depth(top_k, retrieve_k)
            asked, short = 0, depth + most
            while short > 0:
                asked += short
                found = await self.store.asearch_batch(plain, top_k=asked, filter=filter, **words)
                short = short_by(found, asked, depth + most)
            found = without(await run(partial(self._mended, found, plain, words)), exclude, depth)
        else:
            stored = await self.store.aget(ids_of(queries, candidates), with_embeddings=True)
            found = without(stored_hits(candidates, stored, self.store.name), exclude)
        ranked = await run(partial(self._order, queries, found, plain, explain))
        if expand:
            better = await run(partial(self._reranking_vectors, queries, ranked, plain))
            more = await self.store.asearch_batch(
                better, top_k=retrieve_k + most, filter=filter, **words
            )
            more = without(more, exclude, retrieve_k)
            merged = await run(partial(self._merge, queries, ranked, more, better, plain))
            ranked = await run(partial(self._explained, queries, merged, found, ranked, explain))
        return [hits[:top_k] for hits in ranked]

    def _words(self, queries: Sequence[str], hybrid: Hybrid | None) -> dict[str, Any]:
        """The store's options for a hybrid search; none for a search by vector alone."""
        check_hybrid(hybrid)
        # A store of another kind need not have hybrid search.
        able = None if hybrid is False else getattr(self.store, "hybrid", None)
        if able is None and hybrid:
            raise StoreError(f"{self.store.name} has no hybrid search: use a QdrantStore with bm25")
        if able is None or (hybrid is None and not able):
            return {}
        return {"queries": queries, "fusion": hybrid if isinstance(hybrid, str) else "rrf"}

    def _mended(
        self, found: list[list[Hit]], vectors: Embeddings, words: Mapping[str, Any]
    ) -> list[list[Hit]]:
        """The hits, with new vectors where a stored one is zero or not finite.

        A score that is the cosine with such a vector is computed again; a fused score stays.
        """
        lacking = any(
            has_no_direction(hit) or (words and hit.embedding is None)
            for hits in found
            for hit in hits
        )
        if not lacking or self._vectors.policy == "ignore":
            return found
        filled, _ = self._vectors.attach(found)
        rankings = score_lists(filled, vectors)
        return [
            [replace(hit, retrieval_score=None) for hit in cosines]
            if not words or any(map(has_no_direction, hits))
            else fused
            for hits, fused, cosines in zip(found, filled, rankings, strict=True)
        ]

    def _order(
        self,
        queries: Sequence[str],
        found: list[list[Hit]],
        plain: Embeddings | None,
        explain: bool,
    ) -> list[list[Hit]]:
        """The reranker's rankings; without a reranker, rankings by plain cosine.

        plain: the query vectors of the search; None for candidates from elsewhere.
        """
        if plain is not None and not self._reads_vectors:
            found = self._vectors.probe(found)
        if self.reranker is not None:
            asked = self._asked(plain)
            options: dict[str, Any] = {} if asked is None else {"query_vectors": asked}
            options |= {"explain": True} if explain else {}
            return self.reranker.rerank_batch(queries, found, **options)
        if plain is not None:
            return found
        filled, _ = self._vectors.attach(found)
        return score_lists(filled, self.encoder.encode_queries(queries))

    def _asked(self, plain: Embeddings | None) -> Embeddings | None:
        """The query vectors for the reranker, where they are its own encoder's."""
        # Two encoders with one fingerprint may have different query prompts.
        same = self._reads_vectors and self._vectors.encoder is self.encoder
        return plain if same else None

    def _reranking_vectors(
        self, queries: Sequence[str], ranked: list[list[Hit]], plain: Embeddings | None
    ) -> Embeddings:
        """The reranking vector of each query; the plain one for a query without candidates."""
        vectors: Embeddings | None = getattr(ranked, "vectors", None)
        if vectors is None:
            raise self._no_vector()
        empty = [row for row, hits in enumerate(ranked) if not hits]
        if not empty:
            return vectors
        vectors = vectors.copy()
        if plain is None:
            plain = self.encoder.encode_queries(queries)
        vectors[empty] = plain[empty]
        return vectors

    def _no_vector(self) -> ValueError:
        return ValueError(
            "expand searches again with the reranker's own vector, which "
            f"{type(self.reranker).__name__} does not have; use ListwiseReranker without a window"
        )

    def _merge(
        self,
        queries: Sequence[str],
        ranked: Sequence[list[Hit]],
        more: Sequence[Sequence[Hit]],
        vectors: Embeddings,
        plain: Embeddings | None,
    ) -> list[list[Hit]]:
        """The documents of both searches, each once, ranked as the reranker scores them."""
        unions = [{hit.document.id: hit for hit in hits} for hits in ranked]
        fresh = [
            [hit for hit in hits if hit.document.id not in union]
            for hits, union in zip(more, unions, strict=True)
        ]
        filled, _ = self._vectors.attach(fresh)
        lists = [[*union.values(), *hits] for union, hits in zip(unions, filled, strict=True)]
        assert isinstance(self.reranker, VectorReranker)
        return self.reranker.score(queries, lists, vectors, query_vectors=self._asked(plain))

    def _explained(
        self,
        queries: Sequence[str],
        merged: list[list[Hit]],
        found: list[list[Hit]],
        ranked: list[list[Hit]],
        explain: bool,
    ) -> list[list[Hit]]:
        """The rankings after a second search, explained where the first ones were."""
        if not explain:
            return merged
        assert isinstance(self.reranker, BaseReranker)
        assert isinstance(ranked, Reranking)
        return self.reranker.explained(queries, merged, found, ranked.made)

    def _depth(self, top_k: int, retrieve_k: int) -> int:
        return top_k if self.reranker is None else retrieve_k

    def _check_arguments(self, top_k: int, retrieve_k: int, expand: bool, explain: bool) -> None:
        if top_k < 1:
            raise ValueError(f"top_k must be > 0, got {top_k}")
        if self.reranker is not None and retrieve_k < top_k:
            raise ValueError(f"retrieve_k must be at least top_k ({top_k}), got {retrieve_k}")
        if expand and not isinstance(self.reranker, VectorReranker):
            raise self._no_vector()
        if explain and not isinstance(self.reranker, BaseReranker):
            raise ValueError(
                "explain says how a reranker of e2rank_rag came to its scores, and this pipeline "
                f"has {'none' if self.reranker is None else type(self.reranker).__name__}"
            )

    def _check_store(self) -> None:
        """StoredVectorMismatch where the store's record names another encoder."""
        if self._own_vectors.policy != "check":
            return
        recorded, store = self.store.fingerprint, self.store.name
        model = getattr(self.encoder, "name", type(self.encoder).__name__)
        # Vectors of one fingerprint have one dimension.
        if recorded != self.encoder.fingerprint and self.store.dim != self.encoder.dim:
            raise StoredVectorMismatch(
                f"{store} holds vectors of {self.store.dim} dimensions, {model} makes "
                f"{self.encoder.dim}: open the model that wrote them, or index again"
            )
        if recorded is not None and recorded != self.encoder.fingerprint:
            raise StoredVectorMismatch(
                f"{store} was written by another model than {model}, or with other lengths or "
                "prompts: open that model, or index into another collection"
            )
