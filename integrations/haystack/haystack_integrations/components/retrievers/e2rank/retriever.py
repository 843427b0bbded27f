"""E2RankRetriever: embed the query, search Qdrant, rerank with the stored vectors."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from haystack import Document, component, default_from_dict
from haystack.document_stores.types import FilterPolicy
from haystack.utils import ComponentDevice
from haystack_integrations.common.e2rank.component import RerankingComponent, check_top_k
from haystack_integrations.common.e2rank.documents import as_document
from haystack_integrations.common.e2rank.stores import check_bm25, check_store
from haystack_integrations.components.retrievers.e2rank import _filters
from qdrant_client import models

from e2rank_rag.evidence import Evidence
from e2rank_rag.locks import Kept
from e2rank_rag.models.folders import model_name
from e2rank_rag.models.shipped import DEFAULT_MODEL
from e2rank_rag.pipeline import SearchPipeline, check_hybrid
from e2rank_rag.rerankers import BaseReranker
from e2rank_rag.store import Layout
from e2rank_rag.types import Hit, Hybrid
from e2rank_rag.words import Bm25

if TYPE_CHECKING:
    from haystack.components.retrievers.types import TextRetriever


@component
@dataclass(eq=False, repr=False)
class E2RankRetriever(RerankingComponent):
    """Query in, reranked documents out: text embedder, Qdrant retriever and ranker in one.

    ```python
    from haystack_integrations.components.retrievers.e2rank import E2RankRetriever
    from haystack_integrations.document_stores.qdrant import QdrantDocumentStore

    store = QdrantDocumentStore(path="./index", index="news", embedding_dim=384)
    retriever = E2RankRetriever(document_store=store, model="e2rank-minilm", top_k=10)
    documents = retriever.run(query="storm in the north")["documents"]
    ```

    The ranking is that of the three components, but the candidates' vectors are not copied from one
    to the next. A score is the cosine with the reranking vector, plus what the words of the
    candidates add where the model's recipe says so: comparable within a query, not across queries.
    It may exceed 1. The score of the search is in `meta["retrieval_score"]`: a cosine, or of a
    hybrid search the score of the fusion. A ResRank as `model`
    retrieves with its encoder and reranks with its reranker; a cross-encoder as `reranker` reranks
    what `model` retrieves.

    The models are loaded at the first run, or by `warm_up`.

    :param document_store: a QdrantDocumentStore with an existing collection (its client is shared),
        an e2rank_rag QdrantStore, the arguments of `QdrantStore.open` as a dict, or any
        `e2rank_rag.types.Store`, which YAML cannot hold.
    :param model: "e2rank-minilm", a model folder or a hub id: the model that wrote the vectors.
    :param reranker: the folder or hub id of another model that reranks: a cross-encoder, or a
        model with the same vectors. None: `model` itself.
    :param system: the system of the `reranker`, only if its folder does not say it: "rankt5" for
        any cross-encoder.
    :param hybrid: retrieve by the query's words too. True or "rrf" fuses both rankings by ranks,
        "dbsf" by scores. None: where the collection holds BM25, because a QdrantStore with `bm25`
        wrote it or `bm25` says so.
    :param bm25: what the sparse vectors of a QdrantDocumentStore hold, which nothing else says:
        `Bm25(language="english")` (or a dict) for those of E2RankDocumentEmbedder with the same
        `bm25`, or of fastembed's "Qdrant/bm25". Leave it out for others, such as SPLADE's.
    :param top_k: how many documents to return.
    :param retrieve_k: how many candidates to retrieve and rerank.
    :param filters: Haystack's, or a native Qdrant filter.
    :param filter_policy: "replace" these filters by those of a run, or "merge" both.
    :param score_threshold: leave out documents that score less after reranking; see E2RankRanker.
    :param expand: search a second time with the reranking vector, and rank the documents of both
        searches as one list. For an E2Rank only.
    :param return_embedding: return the documents with their vectors.
    :param group_by: a meta field: keep the best documents of each of its values, such as the chunks
        of one text.
    :param group_size: how many documents to keep of each value.
    :param prompt_depth: as in E2RankRanker.
    :param query_weight: as in E2RankRanker.
    :param evidence: as in E2RankRanker.
    :param explain: as in E2RankRanker.
    :param stored_vectors: as in E2RankRanker.
    :param meta_fields_to_embed: what the documents were embedded with, as in
        E2RankDocumentEmbedder; so are embedding_separator, document_prefix and document_suffix.
    :param embedding_separator: stands between the meta fields and the content.
    :param query_prefix: text before the query. A hybrid search looks for its words too.
    :param query_suffix: text after the query.
    :param document_prefix: text before each document.
    :param document_suffix: text after each document.
    :param device: as in E2RankRanker; for both models.
    :param dtype: as in E2RankRanker; for both models.
    :param encoder_kwargs: as in E2RankRanker; for `model` only.
    """

    document_store: Any
    _: KW_ONLY
    model: str | Path = DEFAULT_MODEL
    reranker: str | Path | None = None
    system: Literal["e2rank", "resrank", "rankt5"] | None = None
    hybrid: bool | Literal["rrf", "dbsf"] | None = None
    bm25: Bm25 | dict[str, Any] | None = None
    top_k: int = 10
    retrieve_k: int = 100
    filters: dict[str, Any] | models.Filter | None = None
    filter_policy: str | FilterPolicy = FilterPolicy.REPLACE
    score_threshold: float | None = None
    expand: bool = False
    return_embedding: bool = False
    group_by: str | None = None
    group_size: int = 1
    prompt_depth: int | None = None
    query_weight: float | None = None
    evidence: Evidence | dict[str, Any] | Literal[False] | None = None
    explain: bool = False
    stored_vectors: Literal["check", "trust", "ignore"] = "check"
    meta_fields_to_embed: list[str] | None = None
    embedding_separator: str = "\n"
    query_prefix: str = ""
    query_suffix: str = ""
    document_prefix: str = ""
    document_suffix: str = ""
    device: ComponentDevice | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] | None = None
    encoder_kwargs: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        # Not `super()`, whose class is replaced by `@component`.
        RerankingComponent.__post_init__(self)
        self._pipeline: Kept[SearchPipeline] = Kept()
        self._check_system()
        check_bm25(self.document_store, self._bm25())
        if self.retrieve_k < self.top_k:
            raise ValueError(
                f"retrieve_k must be at least top_k ({self.top_k}), got {self.retrieve_k}"
            )

    def _checked(self, name: str, value: Any) -> Any:
        match name:
            case "document_store":
                check_store(value)  # refuses None too
            case "reranker" if value is not None:
                return model_name(value)
            case "filter_policy" if not isinstance(value, FilterPolicy):
                return FilterPolicy.from_str(value)
            case "hybrid":
                check_hybrid(value)
            case "group_size" if value < 1:
                raise ValueError(f"group_size must be > 0, but got {value}")
        return RerankingComponent._checked(self, name, value)

    def _check_system(self) -> None:
        if self.system is not None and self.reranker is None:
            raise ValueError(
                f"system={self.system!r} says what the reranker is: name its folder or hub id too"
            )

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """The component that `to_dict` wrote."""
        parameters = dict(data.get("init_parameters", {}))
        parameters["filters"] = _filters.from_yaml(parameters.get("filters"))
        return default_from_dict(cls, {**data, "init_parameters": parameters})

    def warm_up(self) -> None:
        """Load the models; does nothing when they are loaded."""
        self._open_encoder()
        self._open()

    @component.output_types(documents=list[Document])
    def run(
        self,
        query: str,
        filters: dict[str, Any] | models.Filter | None = None,
        top_k: int | None = None,
        retrieve_k: int | None = None,
        score_threshold: float | None = None,
        return_embedding: bool | None = None,
        hybrid: bool | Literal["rrf", "dbsf"] | None = None,
    ) -> dict[str, Any]:
        """Retrieve and rerank. None takes the value given at construction.

        :param query: the query.
        :param filters: replace those of the construction, or are merged with them.
        :param top_k: how many documents to return.
        :param retrieve_k: how many candidates to rerank; at least top_k.
        :param score_threshold: leave out documents that score less after reranking.
        :param return_embedding: return the documents with their vectors.
        :param hybrid: retrieve by the query's words too, and how.
        :returns: `documents`, best first.
        :raises ValueError: unless top_k > 0, and for `expand`, `prompt_depth`, `query_weight` and
            `evidence` where the reranker has none.
        :raises StoredVectorMismatch: if another model wrote the collection, or another Bm25.
        :raises StoreError: if the collection does not exist, or if it cannot be searched by words
            and `hybrid` asks for that.
        """
        pipeline = self._search_pipeline()
        hits = pipeline.search(**self._search(query, filters, top_k, retrieve_k, hybrid))
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
        hybrid: bool | Literal["rrf", "dbsf"] | None = None,
    ) -> dict[str, Any]:
        """`run` without blocking the event loop."""
        pipeline = await asyncio.to_thread(self._search_pipeline)
        hits = await pipeline.asearch(**self._search(query, filters, top_k, retrieve_k, hybrid))
        return self._output(hits, top_k, score_threshold, return_embedding)

    def _open(self) -> BaseReranker:
        self._check_system()
        if self.reranker is None:
            return self._open_reranker(self.model, self.encoder_kwargs)
        return self._open_reranker(self.reranker, None)

    def _search_pipeline(self) -> SearchPipeline:
        """One pipeline while its models stay open, because it remembers compared vectors."""
        store = self._store().open()
        encoder = self._open_encoder()  # refuses a model that cannot retrieve before the reranker
        reranker = self._open()
        policy = self.stored_vectors
        return self._pipeline.get(
            (store, encoder, reranker, policy),
            lambda: SearchPipeline(encoder, store, reranker, stored_vectors=policy),
        )

    def _close_models(self) -> None:
        self._pipeline.clear()
        RerankingComponent._close_models(self)

    def _search(
        self,
        query: str,
        filters: _filters.Filters,
        top_k: int | None,
        retrieve_k: int | None,
        hybrid: Hybrid | None,
    ) -> dict[str, Any]:
        """The arguments of `SearchPipeline.search`."""
        check_top_k(top_k)
        check_hybrid(hybrid)
        top_k = self.top_k if top_k is None else top_k
        retrieve_k = max(self.retrieve_k, top_k) if retrieve_k is None else retrieve_k
        chosen = _filters.chosen_filters(self.filter_policy, self.filters, filters)
        layout = getattr(self._store().open(), "layout", Layout())
        return {
            "query": self.query_prefix + query + self.query_suffix,
            # Groups are made of everything that was reranked.
            "top_k": top_k if self.group_by is None else max(retrieve_k, top_k),
            "retrieve_k": retrieve_k,
            "filter": _filters.qdrant_filter(chosen, layout),
            "expand": self.expand,
            "hybrid": self.hybrid if hybrid is None else hybrid,
            "explain": self.explain,
        }

    def _bm25(self) -> Bm25 | None:
        return None if self.bm25 is None else Bm25.model_validate(self.bm25)

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
            hits = _best_of_groups(hits, self.group_by, self.group_size)
        if threshold is not None:
            hits = [hit for hit in hits if hit.score >= threshold]
        best = hits[: self.top_k if top_k is None else top_k]
        return {"documents": [as_document(hit, with_embedding=wanted) for hit in best]}


def _best_of_groups(hits: Iterable[Hit], field: str, size: int) -> list[Hit]:
    """The first `size` hits of each value of a meta field, and all hits without the field."""
    path = field.removeprefix("meta.").split(".")
    counts: dict[Any, int] = {}
    kept = []
    for hit in hits:
        value = _at(hit.document.meta, path)
        if value is not None:
            # 3 and 3.0 are one group, as for a filter; a list cannot be a key.
            group = value if type(value) in (int, float) else repr(value)
            counts[group] = counts.get(group, 0) + 1
            if counts[group] > size:
                continue
        kept.append(hit)
    return kept


def _at(meta: Mapping[str, Any], path: Sequence[str]) -> Any:
    value: Any = meta
    for key in path:
        if not isinstance(value, Mapping):
            return None
        value = value.get(key)
    return value


if TYPE_CHECKING:
    _fits: type[TextRetriever] = E2RankRetriever
