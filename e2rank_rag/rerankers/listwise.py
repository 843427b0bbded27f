"""E2Rank's reranker: cosines with the vector of a prompt of the query and its best candidates."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal

import numpy as np

from e2rank_rag.feedback import Feedback
from e2rank_rag.rerankers.base import Lists, Ordered, VectorReranker
from e2rank_rag.rerankers.ranking import Window, score_lists, slide, stacked, unit
from e2rank_rag.types import Embeddings, Hit, PromptUsage, TextEncoder
from e2rank_rag.vectors import StoredVectors


def check_listwise(
    *, prompt_depth: int | None = None, query_weight: float | None = None, passes: int = 1
) -> None:
    """Raise ValueError for a value that no `ListwiseReranker` takes."""
    if prompt_depth is not None and prompt_depth < 0:
        raise ValueError(f"prompt_depth must be 0 or more, got {prompt_depth}")
    if query_weight is not None and not 0.0 <= query_weight <= 1.0:
        raise ValueError(f"query_weight must be between 0 and 1, got {query_weight}")
    if passes < 1:
        raise ValueError(f"passes must be 1 or more, got {passes}")


class ListwiseReranker(VectorReranker):
    """E2Rank: scores are cosines with the vector of a prompt of the query and some candidates.

    prompt_depth: candidates in the prompt, 0 or more (all are scored); None takes the model's own.
    query_weight: `a` in `a * query + (1 - a) * listwise`, 0 to 1; None takes the model's own.
    feedback: how the candidates for the prompt are chosen, and how much the mean of their vectors
        counts; None takes the model's own, False shows the first candidates.
    passes: how often it reranks, at least 1; each pass reads the ranking of the previous one.
    window: reranks in windows, last to first. Each window costs a prompt, which shows the first
        `prompt_depth` candidates of the window. See `slide` for the scores.
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
        check_listwise(prompt_depth=prompt_depth, query_weight=query_weight, passes=passes)
        self.prompt_depth = prompt_depth
        self.query_weight = query_weight
        self.feedback = feedback
        self.passes = passes
        self.window = window

    def _order(
        self, queries: Sequence[str], lists: Lists, query_vectors: Embeddings | None
    ) -> Ordered:
        if query_vectors is None and self._feedback() is not None:
            query_vectors = self.encoder.encode_queries(queries)

        def in_window(
            rows: list[int], parts: list[list[Hit]]
        ) -> tuple[list[list[Hit]], tuple[PromptUsage, ...]]:
            asked = None if query_vectors is None else query_vectors[rows]
            ordered = self._once([queries[row] for row in rows], parts, asked)
            return ordered.rankings, ordered.prompts

        ordered = Ordered(list(lists), ())
        prompts: list[PromptUsage] = []
        for turn in range(self.passes):
            if self.window is not None:
                ordered = Ordered(*slide(in_window, ordered.rankings, self.window))
            else:
                ordered = self._once(queries, ordered.rankings, query_vectors, reranked=turn > 0)
            prompts += ordered.prompts
        return ordered._replace(prompts=tuple(prompts))

    def _once(
        self,
        queries: Sequence[str],
        lists: Sequence[list[Hit]],
        query_vectors: Embeddings | None,
        *,
        reranked: bool = False,
    ) -> Ordered:
        """One prompt per list. reranked: the lists' scores are cosines from an earlier pass."""
        encode = partial(
            self.encoder.encode_listwise,
            queries,
            depth=self.prompt_depth,
            query_weight=self.query_weight,
            query_vectors=query_vectors,
        )
        feedback = self._feedback()
        if feedback is None:
            vectors, usage = encode([_texts(hits) for hits in lists])
            return Ordered(score_lists(lists, vectors), usage, vectors)
        scored = lists
        if not reranked:
            # The candidates' scores may be of any kind, such as BM25.
            assert query_vectors is not None
            scored = score_lists(lists, query_vectors)
        chosen = [
            feedback.choose(query, _texts(hits), np.array([h.score for h in hits]), stacked(hits))
            for query, hits in zip(queries, scored, strict=True)
        ]
        shown = [
            _texts([hits[place] for place in places])
            for hits, (places, _) in zip(scored, chosen, strict=True)
        ]
        listwise, usage = encode(shown)
        vectors = unit(listwise + np.stack([added for _, added in chosen]))
        return Ordered(score_lists(lists, vectors), usage, vectors)

    def _feedback(self) -> Feedback | None:
        own = self.encoder.feedback if self.feedback is None else self.feedback
        return own or None


def _texts(hits: Sequence[Hit]) -> list[str]:
    return [hit.document.text for hit in hits]
