"""E2RankRetriever: embed the query, search Qdrant, rerank with the vectors that it holds."""

# First, since it says which extra is missing where Haystack is.
from haystack_integrations.components.rankers.e2rank import _backend  # isort: skip

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from haystack import Document, component, default_from_dict
from haystack.document_stores.types import FilterPolicy
from haystack.utils import ComponentDevice
from haystack_integrations.components.rankers.e2rank._stores import Searched, StoreHandle
from haystack_integrations.components.retrievers.e2rank import _filters, _results
from qdrant_client import models

from e2rank_rag.models.folders import model_name
from e2rank_rag.models.shipped import DEFAULT_MODEL
from e2rank_rag.pipeline import SearchPipeline
from e2rank_rag.types import Hit

if TYPE_CHECKING:
    from haystack.components.retrievers.types import TextRetriever


@component
class E2RankRetriever(_backend.Configured):
    """Query in, reranked documents out: text embedder, Qdrant retriever and ranker in one.

    ```python
    from haystack_integrations.components.retrievers.e2rank import E2RankRetriever
    from haystack_integrations.document_stores.qdrant import QdrantDocumentStore

    store = QdrantDocumentStore(path="./index", index="news", embedding_dim=384)
    retriever = E2RankRetriever(document_store=store, model="e2rank-minilm", top_k=10)
    documents = retriever.run(query="storm in the north")["documents"]
    ```

    The same ranking as the three components give, without copying the candidates' vectors from one
    to the next. A score is a cosine with the vector that reranks: comparable within a query, not
    across queries; the plain cosine is in `meta["retrieval_score"]`. A ResRank as the model
    retrieves with its encoder and reranks with its reranker; a RankT5 reranks what another model
    retrieves.
    """

    def __init__(
        self,
        document_store: Any,
        *,
        model: str | Path = DEFAULT_MODEL,
        reranker: str | Path | None = None,
        system: Literal["e2rank", "resrank", "rankt5"] | None = None,
        top_k: int = 10,
        retrieve_k: int = 100,
        filters: dict[str, Any] | models.Filter | None = None,
        filter_policy: str | FilterPolicy = FilterPolicy.REPLACE,
        score_threshold: float | None = None,
        expand: bool = False,
        return_embedding: bool = False,
        group_by: str | None = None,
        group_size: int = 1,
        prompt_depth: int | None = None,
        query_weight: float | None = None,
        stored_vectors: Literal["check", "trust", "ignore"] = "check",
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
        """Nothing is loaded or opened before the first run; `warm_up` loads the models.

        document_store: a QdrantDocumentStore with an existing collection (its client is shared), an
            e2rank_rag store, or the arguments of `QdrantStore.open` as a dict.
        model: "e2rank-minilm", a model folder or a hub id: the model that wrote the vectors.
        reranker: a folder or hub id of the model that reranks, a RankT5 or one that reads vectors
            of `model`; None: `model` itself.
        system: of the `reranker`, only where its folder does not say: "rankt5" for a T5 or
            another library's cross-encoder.
        retrieve_k: candidates retrieved and reranked.
        filters: Haystack's, or a native Qdrant filter. filter_policy: "replace" or "merge" them
            with those of a run.
        score_threshold: leave out documents that score less after reranking.
        expand: search a second time with the listwise vector, and rank both findings by it; for
            an E2Rank only.
        group_by, group_size: keep the best documents of each value of a meta field, such as the
            chunks of one text.
        prompt_depth, query_weight, stored_vectors, encoder_kwargs, device, dtype: as in
            E2RankRanker. encoder_kwargs are of `model`; device and dtype of the reranker too.
        meta_fields_to_embed, embedding_separator, document_prefix, document_suffix: what the
            documents were embedded with.
        """
        _backend.check_top_k(top_k)
        if retrieve_k < top_k:
            raise ValueError(f"retrieve_k must be at least top_k ({top_k}), got {retrieve_k}")
        if system is not None and reranker is None:
            raise ValueError(f"system={system!r} is of a reranker: name its folder or hub id too")
        if group_size < 1:
            raise ValueError(f"group_size must be > 0, but got {group_size}")
        self.document_store = document_store
        self.model = model_name(model)
        self.reranker = None if reranker is None else model_name(reranker)
        self.system = system
        self.top_k = top_k
        self.retrieve_k = retrieve_k
        self.filters = filters
        self.filter_policy = (
            filter_policy
            if isinstance(filter_policy, FilterPolicy)
            else FilterPolicy.from_str(filter_policy)
        )
        self.score_threshold = score_threshold
        self.expand = expand
        self.return_embedding = return_embedding
        self.group_by = group_by
        self.group_size = group_size
        self.prompt_depth = prompt_depth
        self.query_weight = query_weight
        self.stored_vectors = stored_vectors
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
            self._encoder
            if self.reranker is None
            else _backend.LazyEncoder(self.reranker, device=device, dtype=dtype, options=None),
            system=system,
            prompt_depth=prompt_depth,
            query_weight=query_weight,
            stored_vectors=stored_vectors,
        )
        self._store = StoreHandle(document_store)
        self._pipeline: SearchPipeline | None = None

    def to_dict(self) -> dict[str, Any]:
        """For YAML; the device stays open where none was given."""
        return _backend.to_dict(self, document_store=self._store.to_dict())

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "E2RankRetriever":
        """From `to_dict`."""
        parameters = dict(data.get("init_parameters", {}))
        parameters["filters"] = _filters.from_yaml(parameters.get("filters"))
        return default_from_dict(cls, {**data, "init_parameters": parameters})

    def warm_up(self) -> None:
        """Load the models; does nothing when they are there."""
        self._encoder.open()
        self._reranker.open()

    async def warm_up_async(self) -> None:
        """`warm_up` without blocking the event loop."""
        await self._encoder.aopen()
        await self._reranker.aopen()

    def close(self) -> None:
        """Free the models, and the document store's connection; the next run opens them again."""
        self._close_models()
        self._store.close()

    async def close_async(self) -> None:
        """`close` without blocking the event loop."""
        await asyncio.to_thread(self._close_models)
        await self._store.aclose()

    def _close_models(self) -> None:
        self._pipeline = None
        self._encoder.close()
        self._reranker.close()

    @component.output_types(documents=list[Document])
    def run(
        self,
        query: str,
        filters: dict[str, Any] | models.Filter | None = None,
        top_k: int | None = None,
        retrieve_k: int | None = None,
        score_threshold: float | None = None,
        return_embedding: bool | None = None,
    ) -> dict[str, Any]:
        """The best documents first; what is None is as at construction.

        A top_k above the retrieve_k of the construction retrieves that many.
        Raises ValueError unless top_k > 0, and for `expand`, `prompt_depth` and `query_weight`
        where the reranker has none; StoredVectorMismatch where another model wrote the collection,
        StoreError where it is not there.
        """
        pipeline = self._search_pipeline()
        hits = pipeline.search(**self._search(query, filters, top_k, retrieve_k))
        return self._output(hits, top_k, score_threshold, return_embedding)

    @component.output_types(documents=list[Document])
    async def run_async(
        self,
        query: str,
        filters: dict[str, Any] | models.Filter | None = None,
        top_k: int | None = None,
        retrieve_k: int | None = None,
        score_threshold: float | None = None,
        return_embedding: bool | None = None,
    ) -> dict[str, Any]:
        """`run` without blocking the event loop."""
        pipeline = await asyncio.to_thread(self._search_pipeline)
        hits = await pipeline.asearch(**self._search(query, filters, top_k, retrieve_k))
        return self._output(hits, top_k, score_threshold, return_embedding)

    def _search_pipeline(self) -> SearchPipeline:
        """One for each opening of the store and the reranker: it remembers what it compared."""
        store = self._store.open()
        self._encoder.open()  # a model that cannot retrieve is refused before a reranker is loaded
        reranker = self._reranker.open()
        pipeline = self._pipeline
        if (
            pipeline is None
            or pipeline.reranker is not reranker
            or pipeline.store.store is not store  # type: ignore[attr-defined]
        ):
            pipeline = SearchPipeline(
                self._encoder,
                Searched(store, self._text),
                reranker,
                stored_vectors=self.stored_vectors,
            )
            self._pipeline = pipeline
        return pipeline

    def _search(
        self, query: str, filters: _filters.Filters, top_k: int | None, retrieve_k: int | None
    ) -> dict[str, Any]:
        """The arguments of `SearchPipeline.search`."""
        _backend.check_top_k(top_k)
        top_k = self.top_k if top_k is None else top_k
        retrieve_k = max(self.retrieve_k, top_k) if retrieve_k is None else retrieve_k
        chosen = _filters.chosen_filters(self.filter_policy, self.filters, filters)
        return {
            "query": self.query_prefix + query + self.query_suffix,
            # Groups are made of everything that was reranked.
            "top_k": top_k if self.group_by is None else max(retrieve_k, top_k),
            "retrieve_k": retrieve_k,
            "filter": _filters.qdrant_filter(chosen, self._store.layout),
            "expand": self.expand,
        }

    def _output(
        self,
        hits: list[Hit],
        top_k: int | None,
        score_threshold: float | None,
        return_embedding: bool | None,
    ) -> dict[str, Any]:
        threshold = self.score_threshold if score_threshold is None else score_threshold
        wanted = self.return_embedding if return_embedding is None else return_embedding
        if self.group_by is not None:
            hits = _results.best_of_groups(hits, self.group_by, self.group_size)
        if threshold is not None:
            hits = [hit for hit in hits if hit.score >= threshold]
        best = hits[: self.top_k if top_k is None else top_k]
        return {"documents": _results.as_documents(best, with_embedding=wanted)}


if TYPE_CHECKING:
    _fits: type[TextRetriever] = E2RankRetriever
