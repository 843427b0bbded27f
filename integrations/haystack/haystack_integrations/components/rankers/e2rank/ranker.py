"""E2RankRanker: reranks documents that come from any retriever or joiner."""

import asyncio
from dataclasses import KW_ONLY, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from haystack import Document, component
from haystack.utils import ComponentDevice
from haystack_integrations.common.e2rank.component import RerankingComponent, check_top_k
from haystack_integrations.common.e2rank.documents import as_hit, rescored, without_copies

from e2rank_rag.evidence import Evidence
from e2rank_rag.models.shipped import DEFAULT_MODEL
from e2rank_rag.rerankers import BaseReranker, RerankReport
from e2rank_rag.types import Hit
from e2rank_rag.vectors import VectorCounts


@component
@dataclass(eq=False, repr=False)
class E2RankRanker(RerankingComponent):
    """Reranks documents, with an E2Rank by one forward pass over the query and the first of them.

    ```python
    from haystack import Document
    from haystack_integrations.components.rankers.e2rank import E2RankRanker

    ranker = E2RankRanker(model="e2rank-minilm", top_k=5)
    answer = ranker.run(query="which city lies on the Seine?", documents=[
        Document(content="Paris lies on the Seine."), Document(content="Berlin has a zoo."),
    ])
    ```

    Documents that carry their `embedding` (a retriever with `return_embedding=True`) are not
    encoded again. For other documents the vectors are read from `document_store` or encoded here.
    A score is the cosine with the reranking vector, plus what the words of the candidates add where
    the model's recipe says so: comparable within a query, not across queries. It may exceed 1.

    The model's folder says which system it is. A ResRank reads the query and one vector per
    document. A cross-encoder reads the text of each document with the query and needs no vectors;
    its scores are not cosines.

    Candidates may come from BM25, hybrid retrieval or a joiner: their scores do not count, and
    their order only where the prompt shows the first documents. QdrantHybridRetriever returns at
    most 20 of them whatever its top_k, because it asks each of its two searches for 10.

    The model is loaded at the first run, or by `warm_up`.

    :param model: "e2rank-minilm", a model folder or a hub id. An E2Rank or a ResRank must have
        written the vectors.
    :param system: only where its folder does not say: "rankt5" for any cross-encoder.
    :param top_k: how many documents to return.
    :param score_threshold: leave out documents that score less. A score depends on the other
        candidates: choose a threshold for one model, on your own queries, or leave it out.
    :param prompt_depth: how many documents an E2Rank's prompt shows, the best or the first as the
        model says. All are scored. None takes the model's own.
    :param query_weight: the weight of the plain query in an E2Rank's vector, 0 to 1. None takes
        the model's own.
    :param evidence: what words add to an E2Rank's cosines, an `e2rank_rag.Evidence` or a dict of
        its settings. None takes the model's own; False adds nothing, so scores are cosines.
    :param explain: put an explanation of each document's score and rank into
        `meta["explanation"]`: `e2rank_rag.Explanation.as_dict`.
    :param stored_vectors: "check" encodes a few documents again and compares (up to three of each
        list that carries vectors, two of those from a document_store without a record of its
        model, none that were compared before); "trust" uses the vectors without that; "ignore"
        encodes every document again.
    :param document_store: with the vectors; the same kinds as in E2RankRetriever.
    :param meta_fields_to_embed: what the documents were embedded with, as in
        E2RankDocumentEmbedder; so are embedding_separator, document_prefix and document_suffix.
    :param embedding_separator: stands between the meta fields and the content.
    :param query_prefix: text before the query.
    :param query_suffix: text after the query.
    :param document_prefix: text before each document.
    :param document_suffix: text after each document.
    :param device: None takes CUDA where there is one, else the CPU, on the machine that runs it.
    :param dtype: None takes bfloat16 on CUDA, float32 on the CPU; "auto" takes bfloat16 on a CPU
        too, if it computes in it.
    :param encoder_kwargs: further arguments of the model's `from_pretrained` (`e2rank_rag.Encoder`,
        `ResRank` or `CrossEncoder`), such as task, revision, max_length.
    """

    _: KW_ONLY
    model: str | Path = DEFAULT_MODEL
    system: Literal["e2rank", "resrank", "rankt5"] | None = None
    top_k: int = 10
    score_threshold: float | None = None
    prompt_depth: int | None = None
    query_weight: float | None = None
    evidence: Evidence | dict[str, Any] | Literal[False] | None = None
    explain: bool = False
    stored_vectors: Literal["check", "trust", "ignore"] = "check"
    document_store: Any = None
    meta_fields_to_embed: list[str] | None = None
    embedding_separator: str = "\n"
    query_prefix: str = ""
    query_suffix: str = ""
    document_prefix: str = ""
    document_suffix: str = ""
    device: ComponentDevice | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] | None = None
    encoder_kwargs: dict[str, Any] | None = None

    def warm_up(self) -> None:
        """Load the model; does nothing when it is loaded."""
        self._open()

    @component.output_types(documents=list[Document], meta=dict[str, Any])
    def run(
        self,
        query: str,
        documents: list[Document],
        top_k: int | None = None,
        score_threshold: float | None = None,
    ) -> dict[str, Any]:
        """Rerank documents. Among documents with the same id, the highest score is kept.

        :param query: the query.
        :param documents: the candidates; they are not changed.
        :param top_k: how many to return; None: as at construction.
        :param score_threshold: leave out documents that score less; None: as at construction.
        :returns: `documents`, best first, each with its new score and `meta["retrieval_score"]`;
            and `meta`: how many vectors came with the documents (`reused`), were `fetched` from the
            store and `encoded` here, how many documents and tokens the prompt held
            (`prompt_documents`, `prompt_tokens`; of a cross-encoder all pairs together) and how
            many of these documents were cut to their share of the budget (`prompt_documents_cut`).
        :raises ValueError: unless top_k > 0, and for `prompt_depth`, `query_weight` and `evidence`
            if the model has no listwise prompt.
        :raises StoredVectorMismatch: for another model's vectors.
        """
        check_top_k(top_k)
        candidates = without_copies(documents)
        if not candidates:
            return {"documents": [], "meta": _usage([], _NOTHING)}
        reranker, hits = self._prepared(candidates)
        return self._ranked(reranker, query, candidates, hits, top_k, score_threshold)

    @component.output_types(documents=list[Document], meta=dict[str, Any])
    async def run_async(
        self,
        query: str,
        documents: list[Document],
        top_k: int | None = None,
        score_threshold: float | None = None,
    ) -> dict[str, Any]:
        """`run` without blocking the event loop."""
        check_top_k(top_k)
        candidates = without_copies(documents)
        if not candidates:
            return {"documents": [], "meta": _usage([], _NOTHING)}
        reranker, hits = await asyncio.to_thread(self._prepared, candidates)
        return await reranker.run_async(
            partial(self._ranked, reranker, query, candidates, hits, top_k, score_threshold)
        )

    def _open(self) -> BaseReranker:
        return self._open_reranker(self.model, self.encoder_kwargs)

    def _prepared(self, candidates: list[Document]) -> tuple[BaseReranker, list[Hit]]:
        """The reranker, and the candidates with their stored vectors."""
        reranker = self._open()
        text = self._text()
        hits = [as_hit(document, text) for document in candidates]
        vectors = reranker.vectors
        lacking = any(hit.embedding is None for hit in hits)
        if self.document_store is None or self.stored_vectors == "ignore" or not lacking:
            return reranker, hits
        return reranker, hits if vectors is None else vectors.read(hits, self._store().open())

    def _ranked(
        self,
        reranker: BaseReranker,
        query: str,
        candidates: list[Document],
        hits: list[Hit],
        top_k: int | None,
        score_threshold: float | None,
    ) -> dict[str, Any]:
        query = self.query_prefix + query + self.query_suffix
        reranking = reranker.rerank_batch([query], [hits], explain=self.explain)
        originals = {document.id: document for document in candidates}
        threshold = self.score_threshold if score_threshold is None else score_threshold
        ranked = [
            rescored(originals[hit.document.id], hit)
            for hit in reranking[0]
            if threshold is None or hit.score >= threshold
        ]
        return {
            "documents": ranked[: self.top_k if top_k is None else top_k],
            "meta": _usage(hits, reranking.report),
        }


_NOTHING = RerankReport(VectorCounts(0, 0), ())


def _usage(hits: list[Hit], report: RerankReport) -> dict[str, int]:
    # Only a vector that was read from the store has a source.
    fetched = sum(hit.source != "" for hit in hits)
    usage = report.prompts[0] if report.prompts else None
    return {
        "reused": report.vectors.reused - fetched,
        "fetched": fetched,
        "encoded": report.vectors.encoded,
        "prompt_documents": usage.documents if usage else 0,
        "prompt_documents_cut": usage.documents_cut if usage else 0,
        "prompt_tokens": usage.tokens if usage else 0,
    }
