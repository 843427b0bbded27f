"""SearchPipeline: embed the query, search the store, rerank with the vectors that it holds.

pipeline = SearchPipeline(encoder, store, ListwiseReranker(encoder))
hits = pipeline.search("does vitamin D prevent falls?", top_k=10)
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import nan
from typing import Any

from e2rank_rag.candidates import without_copies
from e2rank_rag.errors import StoredVectorMismatch
from e2rank_rag.rerankers import EnhancedQueryReranker, VectorReranker, score_by_vector
from e2rank_rag.types import (
    Embeddings,
    Filter,
    Hit,
    Reranker,
    Store,
    StoredDocument,
    TextEncoder,
)
from e2rank_rag.vectors import CandidateVectors, StoredVectors

Candidates = Sequence[Hit] | Sequence[str]
"""A ranking from elsewhere, best first: hits, or the ids of documents in the store."""


class SearchPipeline:
    """One encoder, one store and, if wanted, one reranker.

    For each search the store is held against the encoder: its recorded fingerprint, or, where
    nobody recorded one, some of the vectors (`stored_vectors="trust"` leaves that out).
    """

    def __init__(
        self,
        encoder: TextEncoder,
        store: Store,
        reranker: Reranker | None = None,
        *,
        stored_vectors: StoredVectors = "check",
    ) -> None:
        self._vectors = CandidateVectors(encoder, stored_vectors)
        self.store = store
        self.reranker = reranker

    @property
    def encoder(self) -> TextEncoder:
        """Embeds the queries, and checks the vectors of the store."""
        return self._vectors.encoder

    def search(
        self,
        query: str,
        *,
        top_k: int = 10,
        retrieve_k: int = 100,
        filter: Filter | Any | None = None,
        expand: bool = False,
        candidates: Candidates | None = None,
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
        )[0]

    def search_batch(
        self,
        queries: Sequence[str],
        *,
        top_k: int = 10,
        retrieve_k: int = 100,
        filter: Filter | Any | None = None,
        expand: bool = False,
        candidates: Sequence[Candidates] | None = None,
        exclude: Sequence[Collection[str]] | None = None,
    ) -> list[list[Hit]]:
        """The `top_k` best documents for each query, best first, with their embeddings.

        retrieve_k: how many are retrieved for the reranker; without one, top_k are.
        filter: conditions on meta (see `types.Filter`), or a native filter of the store; for every
            search that is made, but not for `candidates`.
        expand: search a second time with the reranker's own vector, and rank both findings by it.
        candidates: rerank these instead of searching: per query, hits or ids of documents in the
            store, best first; copies are left out. Vectors come from the store, by id, whatever a
            hit carries; what the store does not hold, or holds with another text, is encoded.
        exclude: per query, ids of documents that are left out before anything is reranked.

        Raises StoredVectorMismatch when the store's vectors are not the encoder's.
        """
        self._check_arguments(top_k, retrieve_k, expand)
        most = _most_excluded(queries, exclude)
        self._check_store()
        if candidates is None:
            vectors = self.encoder.encode_queries(queries)
            depth = self._depth(top_k, retrieve_k)
            asked, short = 0, depth + most
            while short > 0:
                asked += short
                found = self.store.search_batch(vectors, top_k=asked, filter=filter)
                short = _short(found, asked, depth + most)
            found = _without(self._mended(found, vectors), exclude, depth)
        else:
            ids = _asked(queries, candidates)
            stored = self.store.get(ids, with_embeddings=True)
            found = _without(_with_stored(candidates, stored, self.store.name), exclude)
        if not expand:
            found = self._order(queries, found, searched=candidates is None)
        else:
            found, better = self._enhance(queries, found)
            asked = retrieve_k + most
            more = self.store.search_batch(better, top_k=asked, filter=filter)
            more = _without(more, exclude, retrieve_k)
            found = self._merge(found, more, better)
        return [hits[:top_k] for hits in found]

    async def asearch(
        self,
        query: str,
        *,
        top_k: int = 10,
        retrieve_k: int = 100,
        filter: Filter | Any | None = None,
        expand: bool = False,
        candidates: Candidates | None = None,
    ) -> list[Hit]:
        """`search` without blocking the event loop."""
        rankings = await self.asearch_batch(
            [query],
            top_k=top_k,
            retrieve_k=retrieve_k,
            filter=filter,
            expand=expand,
            candidates=None if candidates is None else [candidates],
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
        candidates: Sequence[Candidates] | None = None,
        exclude: Sequence[Collection[str]] | None = None,
    ) -> list[list[Hit]]:
        """`search_batch` without blocking the event loop."""
        self._check_arguments(top_k, retrieve_k, expand)
        most = _most_excluded(queries, exclude)
        await asyncio.to_thread(self._check_store)
        run = self.encoder.run_async
        if candidates is None:
            vectors = await run(partial(self.encoder.encode_queries, queries))
            depth = self._depth(top_k, retrieve_k)
            asked, short = 0, depth + most
            while short > 0:
                asked += short
                found = await self.store.asearch_batch(vectors, top_k=asked, filter=filter)
                short = _short(found, asked, depth + most)
            found = await run(partial(self._mended, found, vectors))
            found = _without(found, exclude, depth)
        else:
            ids = _asked(queries, candidates)
            stored = await self.store.aget(ids, with_embeddings=True)
            found = _without(_with_stored(candidates, stored, self.store.name), exclude)
        if not expand:
            found = await run(partial(self._order, queries, found, searched=candidates is None))
        else:
            found, better = await run(partial(self._enhance, queries, found))
            asked = retrieve_k + most
            more = await self.store.asearch_batch(better, top_k=asked, filter=filter)
            more = _without(more, exclude, retrieve_k)
            found = await run(partial(self._merge, found, more, better))
        return [hits[:top_k] for hits in found]

    def _mended(self, found: list[list[Hit]], vectors: Embeddings) -> list[list[Hit]]:
        """With the vectors and scores that a few documents lack, since theirs had no direction."""
        lacking = any(_has_no_direction(hit) for hits in found for hit in hits)
        if not lacking or self._vectors.policy == "ignore":
            return found
        filled, _ = self._vectors.attach(found)
        rankings = [
            score_by_vector(hits, vector) if hits else []
            for hits, vector in zip(filled, vectors, strict=True)
        ]
        return [[replace(hit, retrieval_score=None) for hit in hits] for hits in rankings]

    def _order(
        self, queries: Sequence[str], found: list[list[Hit]], *, searched: bool
    ) -> list[list[Hit]]:
        """By the reranker, or else by the query's own cosine (which a search has given already)."""
        if isinstance(self.reranker, VectorReranker):  # which looks at the vectors itself
            return self.reranker.rerank_batch(queries, found)
        if searched:
            self._vectors.probe(found)
        if self.reranker is not None:
            return self.reranker.rerank_batch(queries, found)
        if searched:
            return found
        found, _ = self._vectors.attach(found)
        vectors = self.encoder.encode_queries(queries)
        return [
            score_by_vector(hits, vector) if hits else []
            for hits, vector in zip(found, vectors, strict=True)
        ]

    def _enhance(
        self, queries: Sequence[str], found: Sequence[Sequence[Hit]]
    ) -> tuple[list[list[Hit]], Embeddings]:
        """The findings, each hit with its embedding, and the reranker's vector for each query."""
        assert isinstance(self.reranker, EnhancedQueryReranker)
        filled, _ = self.reranker.vectors.attach(found)
        vectors = self.encoder.encode_queries(queries)
        rows = [row for row, hits in enumerate(filled) if hits]
        if rows:
            better, _ = self.reranker.enhance([queries[r] for r in rows], [filled[r] for r in rows])
            vectors[rows] = better
        return filled, vectors

    def _merge(
        self, found: Sequence[list[Hit]], more: Sequence[Sequence[Hit]], vectors: Embeddings
    ) -> list[list[Hit]]:
        """Both findings of each query, each document once, ranked by the query's better vector."""
        assert isinstance(self.reranker, EnhancedQueryReranker)
        unions = [{hit.document.id: hit for hit in hits} for hits in found]
        fresh = [
            [hit for hit in hits if hit.document.id not in union]
            for hits, union in zip(more, unions, strict=True)
        ]
        filled, _ = self.reranker.vectors.attach(fresh)
        return [
            score_by_vector([*union.values(), *hits], vector) if union or hits else []
            for union, hits, vector in zip(unions, filled, vectors, strict=True)
        ]

    def _depth(self, top_k: int, retrieve_k: int) -> int:
        return top_k if self.reranker is None else retrieve_k

    def _check_arguments(self, top_k: int, retrieve_k: int, expand: bool) -> None:
        if top_k < 1:
            raise ValueError(f"top_k must be > 0, got {top_k}")
        if self.reranker is not None and retrieve_k < top_k:
            raise ValueError(f"retrieve_k must be at least top_k ({top_k}), got {retrieve_k}")
        if expand and not isinstance(self.reranker, EnhancedQueryReranker):
            raise ValueError(
                "expand searches again with the reranker's own vector, which "
                f"{type(self.reranker).__name__} does not have; use ListwiseReranker"
            )

    def _check_store(self) -> None:
        """Hold the store's record against the encoder; if it agrees, no probe is needed."""
        if self._vectors.policy != "check":
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
                f"{store} was written by another model, or with other lengths or prompts, than "
                f"{model} has now: open that one, or index into another collection"
            )
        self._vectors.trust(store, recorded is not None)
        if isinstance(self.reranker, VectorReranker):
            self.reranker.vectors.trust(store, self.reranker.encoder.fingerprint == recorded)


def _asked(queries: Sequence[str], candidates: Sequence[Candidates]) -> list[str]:
    """The ids of all candidates, each once."""
    if len(candidates) != len(queries):
        raise ValueError(f"{len(queries)} queries came with {len(candidates)} candidate lists")
    asked = {
        item if isinstance(item, str) else item.document.id: None
        for items in candidates
        for item in items
    }
    return list(asked)


def _has_no_direction(hit: Hit) -> bool:
    """Whether the vector in the store is zero or not finite."""
    return hit.embedding is None and hit.score == 0.0


def _short(found: Sequence[Sequence[Hit]], asked: int, wanted: int) -> int:
    """How many more to ask for, so that so many have a vector: Qdrant ranks NaN first."""
    full = (hits for hits in found if len(hits) == asked)
    return max((wanted - asked + sum(map(_has_no_direction, hits)) for hits in full), default=0)


def _most_excluded(queries: Sequence[str], exclude: Sequence[Collection[str]] | None) -> int:
    """How many documents more a search asks for, so that as many are left."""
    if exclude is None:
        return 0
    if len(exclude) != len(queries):
        raise ValueError(f"{len(queries)} queries came with {len(exclude)} exclude lists")
    return max(map(len, exclude), default=0)


def _without(
    found: list[list[Hit]],
    exclude: Sequence[Collection[str]] | None,
    depth: int | None = None,
) -> list[list[Hit]]:
    """Each ranking without its excluded documents, and no longer than `depth`."""
    if exclude is None:
        return found
    return [
        [hit for hit in hits if hit.document.id not in ids][:depth]
        for hits, ids in zip(found, exclude, strict=True)
    ]


def _with_stored(
    candidates: Sequence[Candidates], stored: Mapping[str, StoredDocument], source: str
) -> list[list[Hit]]:
    """Ids become hits, and hits get their vector where the store holds the same text."""
    unknown = [
        item
        for items in candidates
        for item in items
        if isinstance(item, str) and item not in stored
    ]
    if unknown:
        raise ValueError(
            f"{len(unknown)} candidates are not in the store, among them {unknown[:5]}: index "
            "them, or pass hits with their text"
        )
    return [
        without_copies([_as_hit(item, stored, source) for item in items]) for items in candidates
    ]


def _as_hit(item: Hit | str, stored: Mapping[str, StoredDocument], source: str) -> Hit:
    if isinstance(item, str):
        return Hit(stored[item].document, nan, stored[item].embedding, source)
    known = stored.get(item.document.id)
    if known is None or known.document.text != item.document.text:
        return replace(item, embedding=None)
    return replace(item, embedding=known.embedding, source=source)
