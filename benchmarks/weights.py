"""Prompts taken apart: weights of query and feedback, and other documents in the prompt."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any, cast

import numpy as np
from tasks import (
    CANDIDATES,
    DENSE,
    NDCG,
    RECALL,
    RRF,
    WORDS,
    Task,
    Values,
    mean,
    reciprocal_ranks,
)

from e2rank_rag.evidence import Evidence, Scores
from e2rank_rag.feedback import Feedback, order
from e2rank_rag.models.encoder import Encoder
from e2rank_rag.rerankers import BaseReranker, ListwiseReranker
from e2rank_rag.rerankers.base import Reranking, VectorReranker
from e2rank_rag.rerankers.ranking import unit
from e2rank_rag.types import Embeddings, Hit, ListwiseEncoding, TextEncoder

QUERY_WEIGHTS = (0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0)
FEEDBACK_WEIGHTS = (0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.5)
SHUFFLES = 2
STUDIED_QUERIES = 100
BATCH_QUERIES = 64

Weights = tuple[float, float]
"""Of the query's vector, and of the candidates' mean."""

Arrange = Callable[[list[list[str]]], list[list[str]]]


class ReadOnce:
    """An encoder that reads no listwise prompt twice; everything else is the encoder's own.

    prompts: how many it has read.
    """

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._vectors: dict[tuple[str, int, tuple[str, ...]], Embeddings] = {}
        self.prompts = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)

    def encode_listwise(
        self,
        queries: Sequence[str],
        candidates: Sequence[Sequence[str]],
        *,
        depth: int | None = None,
        query_weight: float | None = None,
        query_vectors: Embeddings | None = None,
    ) -> ListwiseEncoding:
        """As `Encoder.encode_listwise`, but it does not say what the prompts held."""
        recipe = self._encoder.recipe
        depth = recipe.listwise.depth if depth is None else depth
        weight = recipe.query_weight if query_weight is None else query_weight
        asked = self._encoder.encode_queries(queries) if query_vectors is None else query_vectors
        if weight == 1.0:
            return ListwiseEncoding(asked, ())
        keys = [
            (query, depth, tuple(texts[:depth]))
            for query, texts in zip(queries, candidates, strict=True)
        ]
        fresh = [key for key in dict.fromkeys(keys) if key not in self._vectors]
        if fresh:
            shown = [list(texts) for _, _, texts in fresh]
            read = self._encoder.encode_listwise(
                [query for query, _, _ in fresh], shown, depth=depth, query_weight=0.0
            )
            self._vectors.update(zip(fresh, read.embeddings, strict=True))
            self.prompts += len(fresh)
        listwise = np.stack([self._vectors[key] for key in keys])
        return ListwiseEncoding(unit(weight * asked + (1 - weight) * listwise), ())


@dataclass(frozen=True)
class Listwise:
    """Listwise vectors of a task over RRF, before they are blended, and what is added to them.

    means: the candidates' weighted means. added: what words add to the cosines; None: nothing.
    """

    task: Task
    vectors: Embeddings
    means: Embeddings
    added: list[Scores] | None

    @classmethod
    def of(
        cls,
        task: Task,
        encoder: ReadOnce,
        *,
        depth: int | None = None,
        evidence: Evidence | None = None,
        arrange: Arrange | None = None,
    ) -> Listwise:
        """As `ListwiseReranker` has them.

        depth: of the prompt; None: the recipe's. arrange: changes the texts that are shown.
        """
        feedback = _feedback(encoder)
        depth = encoder.recipe.listwise.depth if depth is None else depth
        bm25 = (evidence or Evidence()).bm25
        shown, means, added = [], [], []
        for place, rows in enumerate(task.rankings[RRF]):
            words, vectors = task.words(place, RRF, bm25), task.vectors[rows]
            known = feedback.evidence(words, vectors @ task.asked[place])
            means.append(feedback.mean(vectors, known))
            shown.append([task.documents[rows[each]].text for each in order(known)[:depth]])
            if evidence is not None:
                added.append(evidence.added(words, known))
        if arrange is not None:
            shown = arrange(shown)
        encode = partial(encoder.encode_listwise, depth=depth, query_weight=0.0)
        vectors = encode(task.queries, shown).embeddings
        return cls(task, vectors, np.stack(means), added or None)

    def ndcg(self, query_weight: float, feedback_weight: float) -> Values:
        """With these weights of the query's vector and of the mean."""
        vectors = query_weight * self.task.asked + (1 - query_weight) * self.vectors
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors = vectors + feedback_weight * self.means
        return self.task.values(self.task.by_vectors(vectors, RRF, self.added))


def grid(
    dev: Sequence[Listwise], query_weights: Sequence[float] = QUERY_WEIGHTS
) -> dict[Weights, dict[str, float]]:
    """Dev means by dataset for every pair of weights of query and feedback."""
    return {
        (query, feedback): {each.task.name: mean(each.ndcg(query, feedback)) for each in dev}
        for query in query_weights
        for feedback in FEEDBACK_WEIGHTS
    }


def best(figures: Mapping[Weights, Mapping[str, float]]) -> Weights:
    """The pair of weights with the best mean over the dev sets."""
    return max(figures, key=lambda pair: fmean(figures[pair].values()))


def weighted(encoder: ReadOnce, weights: Weights, **options: Any) -> ListwiseReranker:
    """With these weights of query and feedback; options: others of `ListwiseReranker`."""
    feedback = _feedback(encoder).model_copy(update={"weight": weights[1]})
    options |= {"query_weight": weights[0], "feedback": feedback, "stored_vectors": "trust"}
    return ListwiseReranker(cast(TextEncoder, encoder), **options)


def reranked(task: Task, reranker: BaseReranker, candidates: str) -> Values:
    """nDCG@10 of what the product makes of one of the task's rankings."""
    rankings: list[list[Hit]] = []
    for start in range(0, len(task.ids), BATCH_QUERIES):
        rankings += _reranking(task, reranker, candidates, start)
    return task.values_of(rankings)


def twice(
    task: Task, reranker: VectorReranker, candidates: str
) -> tuple[Values, dict[str, Values]]:
    """`reranked`, and by measure the values after a second search, as `expand` makes it."""
    rankings: list[list[Hit]] = []
    again: list[list[Hit]] = []
    for start in range(0, len(task.ids), BATCH_QUERIES):
        span = slice(start, start + BATCH_QUERIES)
        first = _reranking(task, reranker, candidates, start)
        assert first.vectors is not None
        more = task.searched(first.vectors, start)
        if candidates != DENSE:
            by_words = task.rankings[WORDS][span]
            more = [reciprocal_ranks(*both) for both in zip(more, by_words, strict=True)]
        unions = [
            list({hit.document.id: hit for hit in [*hits, *fresh]}.values())
            for hits, fresh in zip(first, task.hits(more, start), strict=True)
        ]
        asked = task.asked[span]
        rankings += first
        again += reranker.score(task.queries[span], unions, first.vectors, query_vectors=asked)
    best = [hits[:CANDIDATES] for hits in again]
    by_measure = {measure: task.values_of(best, measure) for measure in (NDCG, RECALL)}
    return task.values_of(rankings), by_measure


def _reranking(task: Task, reranker: BaseReranker, candidates: str, start: int) -> Reranking:
    span = slice(start, start + BATCH_QUERIES)
    hits = task.hits(task.rankings[candidates][span], start)
    return reranker.rerank_batch(task.queries[span], hits, query_vectors=task.asked[span])


def _feedback(encoder: ReadOnce) -> Feedback:
    """The recipe's; its defaults for an adapter that was trained without."""
    feedback: Feedback | None = encoder.feedback
    return feedback or Feedback()


def documents_of_the_prompt(task: Task, encoder: ReadOnce) -> dict[str, float]:
    """nDCG@10 with other documents in the prompt; of the first queries only."""
    task = task.first(STUDIED_QUERIES)
    weights = (encoder.recipe.query_weight, _feedback(encoder).weight)

    def with_texts(arrange: Arrange | None) -> float:
        lists = Listwise.of(task, encoder, evidence=encoder.evidence, arrange=arrange)
        return mean(lists.ndcg(*weights))

    def shuffled(seed: int) -> Arrange:
        draw = random.Random(seed)
        return lambda lists: [draw.sample(texts, len(texts)) for texts in lists]

    return {
        "as they are": with_texts(None),
        **{f"shuffled {seed}": with_texts(shuffled(seed)) for seed in range(SHUFFLES)},
        "none": with_texts(lambda lists: [[] for _ in lists]),
        "of another query": with_texts(lambda lists: [*lists[1:], lists[0]]),
    }
