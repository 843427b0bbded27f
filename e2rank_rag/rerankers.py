"""Rerankers: candidates in, the same candidates out in a better order.

    reranker = load_reranker("e2rank-minilm")
    hits = reranker.rerank("where is Paris?", store.search(vector, top_k=100))

- ListwiseReranker (E2Rank, arXiv 2510.22733): one pass over the query and the first K texts; a
  score is the cosine with that vector;
- RocchioReranker: no pass; the query's vector moved towards the first ones;
- ResidualReranker (ResRank): one pass over the query's text and one vector per candidate; the
  cosine of what both have become;
- CrossEncoderReranker (RankT5, arXiv 2210.10634): a pass over each candidate's text with the query.

Scores are comparable within one query, not across queries.
"""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from e2rank_rag.candidates import checked_lists
from e2rank_rag.closing import Closable
from e2rank_rag.feedback import Feedback, order
from e2rank_rag.locks import opening
from e2rank_rag.models.folders import System, system_of
from e2rank_rag.types import Embeddings, Hit, PairRanker, PromptUsage, T, TextEncoder
from e2rank_rag.vectors import (
    CandidateVectors,
    StoredVectors,
    VectorCounts,
    check_policy,
)

if TYPE_CHECKING:
    from e2rank_rag.models.resrank import ListEncoder

Ordered = tuple[list[list[Hit]], tuple[PromptUsage, ...]]
"""Rankings, and what each prompt held."""


def rank(candidates: Sequence[Hit], scores: Sequence[float] | np.ndarray) -> list[Hit]:
    """Candidates with new scores, best first; equal scores keep the order they came in.

    The score that each had before stays as its `retrieval_score`, unless it has one already.
    Raises ValueError for a NaN score, and for another number of scores than candidates.
    """
    values = np.asarray(scores, dtype=np.float64)
    if values.shape != (len(candidates),):
        raise ValueError(f"{len(candidates)} candidates came with scores of shape {values.shape}")
    if np.isnan(values).any():
        worst = candidates[int(np.isnan(values).argmax())].document.id
        raise ValueError(f"the score of document {worst!r} is NaN, which has no rank")
    order = np.argsort(-values, kind="stable")
    return [_rescored(candidates[i], float(values[i])) for i in order]


def _rescored(hit: Hit, score: float) -> Hit:
    first = hit.score if hit.retrieval_score is None else hit.retrieval_score
    return replace(hit, score=score, retrieval_score=first)


@dataclass(frozen=True, slots=True)
class Window:
    """A sliding window over the candidates, last to first, as in the released evaluation."""

    size: int = 20
    step: int = 10

    def __post_init__(self) -> None:
        if not 1 <= self.step <= self.size:
            raise ValueError(
                f"a window needs 1 <= step <= size, got step {self.step} and size {self.size}"
            )

    def starts(self, count: int) -> list[int]:
        """Where the windows over `count` candidates begin, in the order they are taken."""
        first = max(0, count - self.size)
        return [*range(first, 0, -self.step), 0]


@dataclass(frozen=True, slots=True)
class RerankReport:
    """What one call read: document vectors reused and encoded, and what each prompt held.

    A cross-encoder has one prompt per pair: its usage of a query is the sum over them.
    """

    vectors: VectorCounts
    prompts: tuple[PromptUsage, ...]


class BaseReranker(Closable):
    """What every reranker offers, whatever it reads: the forms of one call.

    `close` frees the model, unless others of the same name use it.
    """

    @abstractmethod
    def explain_batch(
        self, queries: Sequence[str], candidates: Sequence[Sequence[Hit]]
    ) -> tuple[list[list[Hit]], RerankReport]:
        """`rerank_batch`, and what it read."""

    @abstractmethod
    async def run_async(self, call: Callable[[], T]) -> T:
        """Run a call in the thread of the model, whose methods run at once when called there."""

    def rerank(self, query: str, candidates: Sequence[Hit]) -> list[Hit]:
        """The candidates of one query, best first; see `rerank_batch`."""
        return self.rerank_batch([query], [candidates])[0]

    def rerank_batch(
        self, queries: Sequence[str], candidates: Sequence[Sequence[Hit]]
    ) -> list[list[Hit]]:
        """Every document once, with its new score, best first. Inputs are not changed.

        Of the copies of a document (see `candidates`) the one with the highest score is ranked.
        Raises StoredVectorMismatch when their vectors are read and are another model's.
        """
        return self.explain_batch(queries, candidates)[0]

    async def arerank(self, query: str, candidates: Sequence[Hit]) -> list[Hit]:
        """`rerank` without blocking the event loop."""
        return (await self.arerank_batch([query], [candidates]))[0]

    async def arerank_batch(
        self, queries: Sequence[str], candidates: Sequence[Sequence[Hit]]
    ) -> list[list[Hit]]:
        """`rerank_batch` without blocking the event loop."""
        return await self.run_async(partial(self.rerank_batch, queries, candidates))


class VectorReranker(BaseReranker):
    """A reranker that reads the vectors of the candidates, and encodes only those that lack one."""

    def __init__(self, encoder: TextEncoder, *, stored_vectors: StoredVectors = "check") -> None:
        self.vectors = CandidateVectors(encoder, stored_vectors)

    @property
    def encoder(self) -> TextEncoder:
        """Makes the vectors, and checks those that are stored."""
        return self.vectors.encoder

    def explain_batch(
        self, queries: Sequence[str], candidates: Sequence[Sequence[Hit]]
    ) -> tuple[list[list[Hit]], RerankReport]:
        filled, counts = self.vectors.attach(checked_lists(queries, candidates))
        # A query without candidates costs no prompt.
        rows = [row for row, hits in enumerate(filled) if hits]
        rankings, prompts = self._order([queries[r] for r in rows], [filled[r] for r in rows])
        for row, ranking in zip(rows, rankings, strict=True):
            filled[row] = ranking
        return filled, RerankReport(counts, prompts)

    async def run_async(self, call: Callable[[], T]) -> T:
        return await self.encoder.run_async(call)

    def close(self) -> None:
        self.encoder.close()

    @abstractmethod
    def _order(self, queries: Sequence[str], lists: Sequence[list[Hit]]) -> Ordered:
        """The rankings of lists with at least one candidate each; all have their embeddings."""


class EnhancedQueryReranker(VectorReranker):
    """What these share: a better query vector per list, cosines with it, one sort."""

    @abstractmethod
    def enhance(
        self, queries: Sequence[str], candidates: Sequence[Sequence[Hit]]
    ) -> tuple[Embeddings, tuple[PromptUsage, ...]]:
        """One vector per query, float32 [n, dim]; candidates come with their embeddings."""

    def _order(self, queries: Sequence[str], lists: Sequence[list[Hit]]) -> Ordered:
        if not lists:
            return [], ()
        vectors, prompts = self.enhance(queries, lists)
        return _ranked(lists, vectors), prompts


class CrossEncoderReranker(BaseReranker):
    """Scores the text of each candidate with the query, such as RankT5; vectors are left alone.

    model: scores pairs, such as `CrossEncoder`; as many forward passes as candidates, all
    with their whole text. Scores are comparable within one query, not across queries.
    """

    def __init__(self, model: PairRanker) -> None:
        self.model = model

    def explain_batch(
        self, queries: Sequence[str], candidates: Sequence[Sequence[Hit]]
    ) -> tuple[list[list[Hit]], RerankReport]:
        rankings = checked_lists(queries, candidates)
        # A query without candidates costs no prompt.
        rows = [row for row, hits in enumerate(rankings) if hits]
        scored = self.model.score(
            [queries[row] for row in rows],
            [[hit.document.text for hit in rankings[row]] for row in rows],
        )
        for row, scores in zip(rows, scored.scores, strict=True):
            rankings[row] = rank(rankings[row], scores)
        return rankings, RerankReport(VectorCounts(0, 0), scored.usage)

    async def run_async(self, call: Callable[[], T]) -> T:
        return await self.model.run_async(call)

    def close(self) -> None:
        self.model.close()


def score_by_vector(candidates: Sequence[Hit], vector: Embeddings) -> list[Hit]:
    """Candidates, each with its embedding, ranked by cosine with one vector [dim]."""
    vectors = np.stack([_embedding(hit) for hit in candidates])
    # Not `@`: BLAS rounds a row by its place in the matrix, and copies of a text would not tie.
    return rank(candidates, np.einsum("nd,d->n", vectors, vector))


class ListwiseReranker(EnhancedQueryReranker):
    """E2Rank: cosine with the embedding of a prompt that holds the query and the best candidates.

    prompt_depth: candidates shown in the prompt (all are scored); None takes the model's own.
    query_weight: `a` in `a * query + (1 - a) * listwise`; None takes the model's own.
    feedback: which candidates are the best, and how much the mean of their vectors counts beside
        the prompt; None takes the model's own, False shows the first as they come.
    passes: how often, each time with the best candidates of the order before.
    window: prompts over a sliding window instead of the first candidates only, each showing the
        first prompt_depth of what it covers and ordering all of that; many times the cost of one
        prompt. Scores then come from different prompts, so each is lowered to the score of the
        place before it where it would be higher.
    stored_vectors: see `StoredVectors`.
    """

    def __init__(
        self,
        encoder: TextEncoder,
        *,
        prompt_depth: int | None = None,
        query_weight: float | None = None,
        feedback: Feedback | Literal[False] | None = None,
        passes: int = 1,
        window: Window | None = None,
        stored_vectors: StoredVectors = "check",
    ) -> None:
        super().__init__(encoder, stored_vectors=stored_vectors)
        if prompt_depth is not None and prompt_depth < 0:
            raise ValueError(f"prompt_depth must be 0 or more, got {prompt_depth}")
        if query_weight is not None and not 0.0 <= query_weight <= 1.0:
            raise ValueError(f"query_weight must be between 0 and 1, got {query_weight}")
        if passes < 1:
            raise ValueError(f"passes must be 1 or more, got {passes}")
        self.prompt_depth = prompt_depth
        self.query_weight = query_weight
        self.feedback = feedback
        self.passes = passes
        self.window = window

    def enhance(
        self, queries: Sequence[str], candidates: Sequence[Sequence[Hit]]
    ) -> tuple[Embeddings, tuple[PromptUsage, ...]]:
        """The listwise vectors of the queries over these candidates, and what each prompt held."""
        if self._feedback() is not None:
            # What found the candidates may have scored them by anything.
            candidates = _ranked(candidates, self.encoder.encode_queries(queries))
        return self._enhance_ranked(queries, candidates)

    def _enhance_ranked(
        self, queries: Sequence[str], candidates: Sequence[Sequence[Hit]]
    ) -> tuple[Embeddings, tuple[PromptUsage, ...]]:
        """With feedback, the scores of the candidates are cosines."""
        feedback = self._feedback()
        texts = [[hit.document.text for hit in hits] for hits in candidates]
        if feedback is None:
            return self._listwise(queries, texts)
        evidence = [
            feedback.evidence(query, shown, np.array([hit.score for hit in hits]))
            for query, shown, hits in zip(queries, texts, candidates, strict=True)
        ]
        best = [[shown[i] for i in order(e)] for shown, e in zip(texts, evidence, strict=True)]
        listwise, usage = self._listwise(queries, best)
        means = [
            feedback.mean(np.stack([_embedding(hit) for hit in hits]), e)
            for hits, e in zip(candidates, evidence, strict=True)
        ]
        return _unit(listwise + feedback.weight * np.stack(means)), usage

    def _feedback(self) -> Feedback | None:
        own = self.encoder.feedback if self.feedback is None else self.feedback
        return own or None

    def _listwise(
        self, queries: Sequence[str], texts: Sequence[Sequence[str]]
    ) -> tuple[Embeddings, tuple[PromptUsage, ...]]:
        encoding = self.encoder.encode_listwise(
            queries, texts, depth=self.prompt_depth, query_weight=self.query_weight
        )
        return encoding.embeddings, encoding.usage

    def _order(self, queries: Sequence[str], lists: Sequence[list[Hit]]) -> Ordered:
        rankings = list(lists)
        prompts: list[PromptUsage] = []
        for turn in range(self.passes if lists else 0):
            if self.window is not None:
                rankings, used = slide(super()._order, queries, rankings, self.window)
            else:
                enhance = self.enhance if turn == 0 else self._enhance_ranked
                vectors, used = enhance(queries, rankings)
                rankings = _ranked(rankings, vectors)
            prompts += used
        return rankings, tuple(prompts)


class ResidualReranker(VectorReranker):
    """ResRank: one pass over the query's text and one vector per candidate, cosines with residuals.

    No text of a candidate is read, but where it comes without its vector, or for the probe.

    window: lists of any length through a model whose positions allow fewer candidates, or only to
        compare fewer at once; see `slide`. None: longer lists are refused.
    stored_vectors: see `StoredVectors`.
    """

    def __init__(
        self,
        model: ListEncoder,
        *,
        window: Window | None = None,
        stored_vectors: StoredVectors = "check",
    ) -> None:
        super().__init__(model.encoder, stored_vectors=stored_vectors)
        self.model = model
        self.window = window

    def close(self) -> None:
        self.model.close()

    def _order(self, queries: Sequence[str], lists: Sequence[list[Hit]]) -> Ordered:
        if self.window is not None:
            return slide(self._order_once, queries, lists, self.window)
        return self._order_once(queries, lists)

    def _order_once(self, queries: Sequence[str], lists: Sequence[list[Hit]]) -> Ordered:
        if not lists:
            return [], ()
        passages = [np.stack([_embedding(hit) for hit in hits]) for hits in lists]
        found = self.model.encode_lists(queries, passages)
        rankings = [
            rank(hits, np.einsum("nd,d->n", vectors, query))
            for hits, vectors, query in zip(lists, found.passages, found.queries, strict=True)
        ]
        return rankings, found.usage


class RocchioReranker(EnhancedQueryReranker):
    """Plain pseudo-relevance feedback, the baseline: query + beta * mean of the first m vectors.

    Rocchio 1971 without negative feedback, on dense vectors. Costs one short query encoding.
    """

    def __init__(
        self,
        encoder: TextEncoder,
        *,
        feedback_documents: int = 3,
        beta: float = 0.4,
        stored_vectors: StoredVectors = "check",
    ) -> None:
        super().__init__(encoder, stored_vectors=stored_vectors)
        if feedback_documents < 1:
            raise ValueError(f"feedback_documents must be 1 or more, got {feedback_documents}")
        if beta < 0:
            raise ValueError(f"beta must be 0 or more, got {beta}")
        self.feedback_documents = feedback_documents
        self.beta = beta

    def enhance(
        self, queries: Sequence[str], candidates: Sequence[Sequence[Hit]]
    ) -> tuple[Embeddings, tuple[PromptUsage, ...]]:
        """query + beta * mean of the first vectors, unit length; no prompt is made."""
        feedback = [
            np.mean([_embedding(hit) for hit in hits[: self.feedback_documents]], axis=0)
            for hits in candidates
        ]
        return _unit(self.encoder.encode_queries(queries) + self.beta * np.stack(feedback)), ()


@opening()
def load_reranker(
    model: str | Path,
    *,
    system: System | None = None,
    stored_vectors: StoredVectors = "check",
    listwise: Mapping[str, Any] | None = None,
    **options: Any,
) -> BaseReranker:
    """The reranker of a model folder or hub id, whichever system its `e2rank.json` says it is.

    system: only where there is no such file: "rankt5" for a T5 or another library's cross-encoder;
        without it such a folder is opened as an encoder.
    listwise: further arguments of `ListwiseReranker`, such as prompt_depth, for an E2Rank.
    options: of that system's `from_pretrained`, such as device and dtype.

    `close` it to free the model. Raises CheckpointError where it cannot be opened, ValueError for
    a `system` that is not what the file says, and for options that the system does not have.
    """
    check_policy(stored_vectors)
    where = {key: options[key] for key in ("revision", "local_files_only") if key in options}
    found = system_of(model, system, **where)
    refused = [name for name, value in (listwise or {}).items() if value is not None]
    if refused and found != "e2rank":
        raise ValueError(
            f"{', '.join(refused)}: of an E2Rank only, and {model} is {found!r}: leave that out"
        )
    # Imported here: a pipeline with its reranker is built without torch.
    match found:
        case "rankt5":
            from e2rank_rag.models.cross_encoder import CrossEncoder

            return CrossEncoderReranker(_opened(CrossEncoder, model, options))
        case "resrank":
            from e2rank_rag.models.resrank import ResRank

            resrank = _opened(ResRank, model, options)
            return ResidualReranker(resrank, stored_vectors=stored_vectors)
    from e2rank_rag.models.encoder import Encoder

    encoder = _opened(Encoder, model, options)
    return ListwiseReranker(encoder, stored_vectors=stored_vectors, **(listwise or {}))


def _opened(kind: Any, model: str | Path, options: Mapping[str, Any]) -> Any:
    known = inspect.signature(kind.from_pretrained).parameters
    unknown = [name for name in options if name not in known]
    if unknown:
        raise ValueError(
            f"{kind.__name__} has no option {', '.join(map(repr, unknown))}; it has "
            f"{', '.join(list(known)[1:])}"
        )
    return kind.from_pretrained(model, **options)


def slide(
    order: Callable[[Sequence[str], Sequence[list[Hit]]], Ordered],
    queries: Sequence[str],
    lists: Sequence[list[Hit]],
    window: Window,
) -> Ordered:
    """Order what the window covers, last to first. Scores of different windows stay descending:
    each is lowered to that of the place before it where it would be higher."""
    rankings = [list(hits) for hits in lists]
    starts = [window.starts(len(hits)) for hits in rankings]
    prompts: list[PromptUsage] = []
    for turn in range(max(map(len, starts), default=0)):
        rows = [row for row, places in enumerate(starts) if turn < len(places)]
        spans = [slice(starts[row][turn], starts[row][turn] + window.size) for row in rows]
        parts, used = order(
            [queries[row] for row in rows],
            [rankings[row][span] for row, span in zip(rows, spans, strict=True)],
        )
        prompts += used
        for row, span, part in zip(rows, spans, parts, strict=True):
            rankings[row][span] = part
    return [_descending(ranking) for ranking in rankings], tuple(prompts)


def _ranked(lists: Sequence[Sequence[Hit]], vectors: Embeddings) -> list[list[Hit]]:
    return [score_by_vector(hits, vector) for hits, vector in zip(lists, vectors, strict=True)]


def _unit(vectors: NDArray[np.floating]) -> Embeddings:
    scaled: Embeddings = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return scaled.astype(np.float32, copy=False)


def _embedding(hit: Hit) -> Embeddings:
    if hit.embedding is None:
        raise ValueError(f"document {hit.document.id!r} came without an embedding")
    return hit.embedding


def _descending(ranking: Sequence[Hit]) -> list[Hit]:
    ceiling = float("inf")
    lowered = []
    for hit in ranking:
        ceiling = min(ceiling, hit.score)
        lowered.append(replace(hit, score=ceiling))
    return lowered
