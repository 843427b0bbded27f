"""E2RankRanker: candidates in from anywhere, the same candidates out in a better order."""

import asyncio
from functools import partial
from pathlib import Path
from typing import Any, Literal

from haystack import Document, component, default_from_dict, logging
from haystack.utils import ComponentDevice
from haystack_integrations.components.rankers.e2rank import _backend
from haystack_integrations.components.rankers.e2rank._candidates import (
    Fetched,
    as_hits,
    reranked,
    unique,
    was_fused_from_ten,
)
from haystack_integrations.components.rankers.e2rank._stores import StoreHandle

from e2rank_rag.models.folders import model_name
from e2rank_rag.models.shipped import DEFAULT_MODEL
from e2rank_rag.rerankers import VectorReranker

logger = logging.getLogger(__name__)


@component
class E2RankRanker(_backend.Configured):
    """Reranks documents, with an E2Rank by one forward pass over the query and the first of them.

    ```python
    from haystack import Document
    from haystack_integrations.components.rankers.e2rank import E2RankRanker

    ranker = E2RankRanker(model="e2rank-minilm", top_k=5)
    found = ranker.run(query="which city lies on the Seine?", documents=[
        Document(content="Paris lies on the Seine."), Document(content="Berlin has a zoo."),
    ])
    ```

    Documents that carry their `embedding` (a retriever with `return_embedding=True`) are not
    encoded again; without it, their vectors are read from `document_store`, or else made here.
    A score is a cosine with the vector that reranks: comparable within a query, not across queries.

    Which system it is, the model's folder says: a ResRank reads the query and one vector per
    document, whose vectors come as above; a RankT5 scores the text of each document with the query
    (such scores are no cosines) and needs no vectors.

    Candidates may come from BM25, hybrid retrieval or a joiner. QdrantHybridRetriever gives at most
    20 of them whatever its top_k says (it asks each of its two searches for 10); a warning is
    logged where the scores show it.
    """

    def __init__(
        self,
        *,
        model: str | Path = DEFAULT_MODEL,
        system: Literal["e2rank", "resrank", "rankt5"] | None = None,
        top_k: int = 10,
        score_threshold: float | None = None,
        prompt_depth: int | None = None,
        query_weight: float | None = None,
        stored_vectors: Literal["check", "trust", "ignore"] = "check",
        document_store: Any = None,
        meta_fields_to_embed: list[str] | None = None,
        embedding_separator: str = "\n",
        query_prefix: str = "",
        query_suffix: str = "",
        document_prefix: str = "",
        document_suffix: str = "",
        device: ComponentDevice | None = None,
        dtype: Literal["float32", "bfloat16", "float16"] | None = None,
        encoder_kwargs: dict[str, Any] | None = None,
    ) -> None:
        """Nothing is loaded before the first run, or `warm_up`.

        model: "e2rank-minilm", a model folder or a hub id, of an E2Rank, ResRank or RankT5; the
            first two must have written the vectors.
        system: only where its folder does not say: "rankt5" for a T5 or another library's
            cross-encoder.
        score_threshold: leave out documents that score less.
        prompt_depth: how many documents, the best or the first as the model says, are shown in the
            prompt (all are scored); None takes the model's own. For an E2Rank only.
        query_weight: how much of the plain query is in the vector; None takes the model's own. For
            an E2Rank only.
        stored_vectors: encode some of the documents anew and compare ("check"), use the vectors
            unseen ("trust"), or encode every document anew ("ignore"). Compared are up to three of
            each list whose documents carry vectors, and two of those that were read from a
            document_store without a record of its model; none that were compared before.
        document_store: a QdrantDocumentStore or an e2rank_rag store, for documents without vectors.
        meta_fields_to_embed, embedding_separator, document_prefix, document_suffix: what the
            documents were embedded with.
        device: None takes CUDA where there is one, else the CPU, on the machine that runs it.
        encoder_kwargs: further arguments of `e2rank_rag.Encoder.from_pretrained`, such as task,
            revision, max_length; of another system, those of `ResRank.from_pretrained` or
            `CrossEncoder.from_pretrained`.
        """
        _backend.check_top_k(top_k)
        self.model = model_name(model)
        self.system = system
        self.top_k = top_k
        self.score_threshold = score_threshold
        self.prompt_depth = prompt_depth
        self.query_weight = query_weight
        self.stored_vectors = stored_vectors
        self.document_store = document_store
        self.meta_fields_to_embed = list(meta_fields_to_embed or [])
        self.embedding_separator = embedding_separator
        self.query_prefix = query_prefix
        self.query_suffix = query_suffix
        self.document_prefix = document_prefix
        self.document_suffix = document_suffix
        self.device = device
        self.dtype = dtype
        self.encoder_kwargs = encoder_kwargs
        self._text = _backend.DocumentText(
            self.meta_fields_to_embed, embedding_separator, document_prefix, document_suffix
        )
        self._encoder = _backend.LazyEncoder(
            self.model, device=device, dtype=dtype, options=encoder_kwargs
        )
        self._reranker = _backend.LazyReranker(
            self._encoder,
            system=system,
            prompt_depth=prompt_depth,
            query_weight=query_weight,
            stored_vectors=stored_vectors,
        )
        self._store = None if document_store is None else StoreHandle(document_store)
        self._warned = False

    def to_dict(self) -> dict[str, Any]:
        """For YAML; the device stays open where none was given."""
        store = None if self._store is None else self._store.to_dict()
        return _backend.to_dict(self, document_store=store)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "E2RankRanker":
        """From `to_dict`."""
        return default_from_dict(cls, data)

    def warm_up(self) -> None:
        """Load the model; does nothing when it is there."""
        self._reranker.open()

    async def warm_up_async(self) -> None:
        """`warm_up` without blocking the event loop."""
        await self._reranker.aopen()

    def close(self) -> None:
        """Free the model, and the document store's connection; the next run opens them again."""
        self._reranker.close()
        if self._store is not None:
            self._store.close()

    async def close_async(self) -> None:
        """`close` without blocking the event loop."""
        await asyncio.to_thread(self._reranker.close)
        if self._store is not None:
            await self._store.aclose()

    @component.output_types(documents=list[Document], meta=dict[str, Any])
    def run(
        self,
        query: str,
        documents: list[Document],
        top_k: int | None = None,
        score_threshold: float | None = None,
    ) -> dict[str, Any]:
        """The best documents first, each with its new score and `meta["retrieval_score"]`.

        Of documents with the same id the one with the highest score is kept.

        Returns `documents`, and `meta`: how many vectors came with the documents (`reused`), were
        `fetched` from the store and `encoded` here, and how many documents (cut to their share of
        the budget: `prompt_documents_cut`) and tokens were in the prompt, or in all the pairs that
        a RankT5 read.
        Raises ValueError unless top_k > 0, and for `prompt_depth` and `query_weight` where the
        model has none; StoredVectorMismatch for another model's vectors.
        """
        _backend.check_top_k(top_k)
        candidates = unique(documents)
        return self._rank(query, candidates, self._fetch(candidates), top_k, score_threshold)

    @component.output_types(documents=list[Document], meta=dict[str, Any])
    async def run_async(
        self,
        query: str,
        documents: list[Document],
        top_k: int | None = None,
        score_threshold: float | None = None,
    ) -> dict[str, Any]:
        """`run` without blocking the event loop."""
        _backend.check_top_k(top_k)
        candidates = unique(documents)
        fetched = await asyncio.to_thread(self._fetch, candidates)
        rank = partial(self._rank, query, candidates, fetched, top_k, score_threshold)
        return await self._reranker.run_async(rank) if candidates else rank()

    def _fetch(self, candidates: list[Document]) -> Fetched:
        """The store's vectors of the documents that came without one, if the reranker reads any."""
        lacking = [document for document in candidates if document.embedding is None]
        if self._store is None or self.stored_vectors == "ignore" or not lacking:
            return Fetched("", {})
        reranker = self._reranker.open()
        if not isinstance(reranker, VectorReranker):
            return Fetched("", {})
        store = self._store.open()
        reranker.vectors.trust_as_recorded(store)
        stored = store.get([document.id for document in lacking], with_embeddings=True)
        return Fetched.of_same_text(store.name, stored, lacking, self._text)

    def _rank(
        self,
        query: str,
        candidates: list[Document],
        fetched: Fetched,
        top_k: int | None,
        score_threshold: float | None,
    ) -> dict[str, Any]:
        self._warn_of_hybrid(candidates)
        carried, read, missing = as_hits(candidates, fetched, self._text)
        by_id = {hit.document.id: hit for hit in (*carried, *read, *missing)}
        rankings, report = self._reranker.explain_batch(
            [self.query_prefix + query + self.query_suffix],
            [[by_id[document.id] for document in candidates]],
        )
        threshold = self.score_threshold if score_threshold is None else score_threshold
        ranked = reranked(rankings[0], candidates, threshold)
        usage = report.prompts[0] if report.prompts else None
        return {
            "documents": ranked[: self.top_k if top_k is None else top_k],
            "meta": {
                "reused": report.vectors.reused - len(read),
                "fetched": len(read),
                "encoded": report.vectors.encoded,
                "prompt_documents": usage.documents if usage else 0,
                "prompt_documents_cut": usage.documents_cut if usage else 0,
                "prompt_tokens": usage.tokens if usage else 0,
            },
        }

    def _warn_of_hybrid(self, candidates: list[Document]) -> None:
        if self._warned or not was_fused_from_ten([d.score for d in candidates]):
            return
        self._warned = True
        logger.warning(
            "{count} candidates have the scores of two searches for 10 documents: "
            "QdrantHybridRetriever fuses no more, whatever its top_k says. For more candidates "
            "join QdrantEmbeddingRetriever and QdrantSparseEmbeddingRetriever with DocumentJoiner.",
            count=len(candidates),
        )
