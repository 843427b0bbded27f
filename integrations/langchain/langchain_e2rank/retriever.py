"""E2RankRetriever: retrieval and reranking in one LangChain retriever."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any, Literal, Self

from langchain_core.callbacks import (
    AsyncCallbackManagerForRetrieverRun,
    CallbackManagerForRetrieverRun,
)
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.retrievers import BaseRetriever, LangSmithRetrieverParams, RetrieverLike
from pydantic import ConfigDict, Field, PrivateAttr, StrictBool, model_validator

from e2rank_rag.locks import Kept
from e2rank_rag.pipeline import SearchPipeline
from e2rank_rag.rerankers import BaseReranker
from e2rank_rag.types import Hybrid, TextEncoder
from langchain_e2rank._collection import Conditions
from langchain_e2rank._shared import SCORE, Checked, as_ranking, atell, scored, tell
from langchain_e2rank.embeddings import E2RankEmbeddings
from langchain_e2rank.reranker import E2RankReranker
from langchain_e2rank.vectorstore import E2RankVectorStore


class E2RankRetriever(Checked, BaseRetriever):
    """The k best documents, best first, each with its score in `metadata["relevance_score"]`.

    `metadata["retrieval_score"]` is the score before reranking: a cosine, or of a hybrid search the
    score of the fusion.

    vectorstore: retrieve its documents and rerank them with their stored vectors.
    base_retriever: or rerank the documents of any LangChain retriever.
    reranker: None reranks with the model of the vectorstore's E2RankEmbeddings, or for a
        base_retriever with `E2RankReranker()`. Its `top_n`, `score_key` and `explain` are not
        used here. A cross-encoder reranks documents that any model has embedded.
    retrieve_k, filter, expand: options of the search in a vectorstore; see
        `SearchPipeline.search_batch`. If k is larger than retrieve_k, k documents are retrieved.
    hybrid: search the vectorstore by the query's words too. True or "rrf" fuses both rankings by
        ranks, "dbsf" by scores. None: where the collection holds words.
    explain: put an explanation of each document's score and rank into `metadata["explanation"]`:
        `e2rank_rag.Explanation.as_dict`.
    score_key: the metadata key of the score. None leaves scores out, for retrievers that compare
        documents by their metadata, as MultiQueryRetriever does.

    `invoke` and `ainvoke` take k, retrieve_k, filter, expand and hybrid too.
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    vectorstore: E2RankVectorStore | None = Field(default=None, exclude=True, repr=False)
    base_retriever: RetrieverLike | None = Field(default=None, exclude=True, repr=False)
    reranker: E2RankReranker | None = None
    k: int = Field(default=10, gt=0)
    retrieve_k: int = Field(default=100, gt=0)
    filter: Any | None = None
    expand: bool = False
    hybrid: StrictBool | Literal["rrf", "dbsf"] | None = None
    explain: bool = False
    score_key: str | None = Field(default=SCORE, min_length=1)

    _own: Kept[E2RankReranker] = PrivateAttr(default_factory=partial(Kept, closes=True))
    _pipeline: Kept[SearchPipeline] = PrivateAttr(default_factory=Kept)

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.vectorstore is None) == (self.base_retriever is None):
            raise ValueError(
                "give a vectorstore or a base_retriever, one of the two (to go from one to the "
                "other, set both: model_copy(update={...}))"
            )
        if self.vectorstore is None:
            self._refuse_search_options(self.filter, self.expand, self.hybrid)
            if self.reranker is None:
                # Set now: `configurable_fields` copies this retriever for each call, and the copies
                # share the reranker.
                vars(self)["reranker"] = E2RankReranker()
        elif self.reranker is None:
            self._of_the_embeddings(self.vectorstore)
        return self

    @property
    def _reranker(self) -> E2RankReranker:
        """The field, or else a reranker with the model of the embeddings."""
        if self.reranker is not None:
            return self.reranker
        stated = {} if self.vectorstore is None else self._of_the_embeddings(self.vectorstore)
        return self._own.get(stated, lambda: E2RankReranker(**stated))

    def _of_the_embeddings(self, vectorstore: E2RankVectorStore) -> dict[str, Any]:
        collection = vectorstore.collection
        if isinstance(collection.embedding, E2RankEmbeddings):
            stated = collection.embedding.stated()
            return {**stated, "stored_vectors": collection.stored_vectors}
        raise ValueError(
            f"the vectorstore embeds with {type(collection.embedding).__name__}, which cannot "
            "rerank: give reranker=E2RankReranker(model=...) with the same model"
        )

    def close(self) -> None:
        """Free the reranker's model, unless others use it. The vectorstore and its embeddings stay
        open."""
        self._pipeline.clear()
        self._own.clear()
        if self.reranker is not None:
            self.reranker.close()

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,
        **given: Any,
    ) -> list[Document]:
        child = run_manager.get_child()
        options = self._options(**given)
        if self.vectorstore is None:
            assert self.base_retriever is not None
            retrieved = self.base_retriever.invoke(query, config={"callbacks": child})
            tell("e2rank.retrieve", {"documents": len(retrieved)}, child)
            ranking = self._reranker.ranking(retrieved, query, child, explain=self.explain)
            best = ranking[: options["top_k"]]
            return [scored(document, hit, self.score_key) for document, hit in best]
        if not self.vectorstore.collection.exists:
            return []
        hits = self._searcher(self.vectorstore).search(query, **options)
        tell("e2rank.search", {"documents": len(hits)}, child)
        return as_ranking(hits, self.score_key)

    async def _aget_relevant_documents(
        self,
        query: str,
        *,
        run_manager: AsyncCallbackManagerForRetrieverRun,
        **given: Any,
    ) -> list[Document]:
        child = run_manager.get_child()
        options = self._options(**given)
        if self.vectorstore is None:
            assert self.base_retriever is not None
            retrieved = await self.base_retriever.ainvoke(query, config={"callbacks": child})
            await atell("e2rank.retrieve", {"documents": len(retrieved)}, child)
            ranking = await self._reranker.aranking(retrieved, query, child, explain=self.explain)
            best = ranking[: options["top_k"]]
            return [scored(document, hit, self.score_key) for document, hit in best]
        if not await self.vectorstore.collection.aexists():
            return []
        # Opening a model takes seconds.
        searcher = await asyncio.to_thread(self._searcher, self.vectorstore)
        hits = await searcher.asearch(query, **options)
        await atell("e2rank.search", {"documents": len(hits)}, child)
        return as_ranking(hits, self.score_key)

    def _options(
        self,
        k: int | None = None,
        retrieve_k: int | None = None,
        filter: Conditions = None,
        expand: bool | None = None,
        hybrid: Hybrid | None = None,
    ) -> dict[str, Any]:
        """The arguments of a search: the call's, or else the fields'."""
        if self.vectorstore is None:
            self._refuse_search_options(filter, expand, hybrid)
        top_k = self.k if k is None else k
        if top_k < 1:
            raise ValueError(f"k must be > 0, got {top_k}")
        return {
            "top_k": top_k,
            "retrieve_k": max(self.retrieve_k, top_k) if retrieve_k is None else retrieve_k,
            "filter": self.filter if filter is None else filter,
            "expand": self.expand if expand is None else expand,
            "hybrid": self.hybrid if hybrid is None else hybrid,
            "explain": self.explain,
        }

    def _refuse_search_options(
        self, filter: Conditions, expand: bool | None, hybrid: Hybrid | None
    ) -> None:
        if filter is not None or expand or hybrid is not None:
            raise ValueError(
                "filter, expand and hybrid are for a vectorstore; configure the base_retriever "
                "instead"
            )

    def _searcher(self, vectorstore: E2RankVectorStore) -> SearchPipeline:
        """One pipeline for as long as its parts stay, since it remembers its probes."""
        embeddings = vectorstore.embeddings
        if isinstance(embeddings, E2RankEmbeddings):
            encoder: TextEncoder = embeddings.encoder
            reranker = self._reranker.opened(encoder if self.reranker is None else None)
        else:
            reranker = self._reranker.opened()
            encoder = self._encoder_of(reranker, embeddings)
        parts = (encoder, vectorstore.store, reranker)
        policy = vectorstore.collection.stored_vectors
        return self._pipeline.get(
            (parts, policy), lambda: SearchPipeline(*parts, stored_vectors=policy)
        )

    def _encoder_of(self, reranker: BaseReranker, embeddings: Embeddings) -> TextEncoder:
        """The reranker's own encoder, for queries to a store with other embeddings."""
        if reranker.vectors is not None:
            return reranker.vectors.encoder
        raise ValueError(
            f"the vectorstore embeds with {type(embeddings).__name__}, and {self._reranker.model} "
            "has no vectors to search it with: give base_retriever=vectorstore.as_retriever(...)"
        )

    def _get_ls_params(self, **kwargs: Any) -> LangSmithRetrieverParams:
        """The parameters that LangSmith shows."""
        parameters = super()._get_ls_params(**kwargs)
        if self.vectorstore is not None:
            parameters["ls_vector_store_provider"] = type(self.vectorstore).__name__
            parameters["ls_embedding_provider"] = type(self.vectorstore.embeddings).__name__
        return parameters
