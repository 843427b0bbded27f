"""E2Rank's reranker: the vector of a prompt of the query and its best candidates is the query."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

import numpy as np

from e2rank_rag.evidence import Evidence
from e2rank_rag.feedback import Chosen, Feedback
from e2rank_rag.rerankers.base import Lists, Ordered
from e2rank_rag.rerankers.evidence import WordsReranker
from e2rank_rag.rerankers.explaining import VectorSum, prompts_of
from e2rank_rag.rerankers.ranking import Window, cosines, score_lists, slide, unit
from e2rank_rag.types import Embeddings, Hit, ListwiseEncoding, PromptUsage, TextEncoder
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


class ListwiseReranker(WordsReranker):
    """E2Rank: scores are cosines with the vector of a prompt of the query and some candidates.

    With evidence, the words of the candidates add to the cosines; see `evidence.joined`.

    prompt_depth: candidates in the prompt, 0 or more (all are scored); None takes the model's own.
    query_weight: `a` in `a * query + (1 - a) * listwise`, 0 to 1; None takes the model's own.
    feedback: how the candidates for the prompt are chosen, and how much the mean of their vectors
        counts; None takes the model's own, False shows the first candidates.
    evidence: what words add to the cosines; None takes the model's own, False adds nothing.
    passes: how often it reranks, at least 1; each pass reads the ranking of the previous one, and
        feedback the cosines with its reranking vector. Words add to the scores of each pass anew.
    window: reranks in windows, last to first. Each window costs a prompt, which shows the first
        `prompt_depth` candidates of the window. Words and deviations are those of the window. See
        `slide` for the scores.
    stored_vectors: see `StoredVectors`.
    """

    def __init__(
        self,
        encoder: TextEncoder,
        *,
        prompt_depth: int | None = None,
        query_weight: float | None = None,
        feedback: Feedback | Literal[False] | None = None,
        evidence: Evidence | Literal[False] | None = None,
        passes: int = 1,
        window: Window | None = None,
        stored_vectors: StoredVectors = "check",
    ) -> None:
        super().__init__(
            encoder, evidence=evidence, feedback=feedback, stored_vectors=stored_vectors
        )
        check_listwise(prompt_depth=prompt_depth, query_weight=query_weight, passes=passes)
        self.prompt_depth = prompt_depth
        self.query_weight = query_weight
        self.passes = passes
        self.window = window

    @property
    def _reads_words(self) -> bool:
        return self._feedback() is not None or self._evidence() is not None

    def _order(
        self, queries: Sequence[str], lists: Lists, query_vectors: Embeddings | None
    ) -> Ordered:
        if query_vectors is None and self._reads_words:
            query_vectors = self.encoder.encode_queries(queries)

        def in_window(
            rows: list[int], parts: list[list[Hit]]
        ) -> tuple[list[list[Hit]], tuple[PromptUsage, ...]]:
            asked = None if query_vectors is None else query_vectors[rows]
            ordered = self._once([queries[row] for row in rows], parts, asked)
            return ordered.rankings, ordered.prompts

        ordered = Ordered(list(lists), ())
        prompts: list[PromptUsage] = []
        for _ in range(self.passes):
            if self.window is not None:
                ordered = Ordered(*slide(in_window, ordered.rankings, self.window))
            else:
                ordered = self._once(
                    queries, ordered.rankings, query_vectors, previous=ordered.vectors
                )
            prompts += ordered.prompts
        return ordered._replace(prompts=tuple(prompts))

    def _once(
        self,
        queries: Sequence[str],
        lists: Sequence[list[Hit]],
        query_vectors: Embeddings | None,
        *,
        previous: Embeddings | None = None,
    ) -> Ordered:
        """One prompt per list. previous: the reranking vectors of an earlier pass, [n, dim]."""
        encode = partial(
            self.encoder.encode_listwise,
            queries,
            depth=self.prompt_depth,
            query_weight=self.query_weight,
            query_vectors=query_vectors,
        )
        chosen: list[Chosen] = []
        if not self._reads_words:
            encoding = encode([_texts(hits) for hits in lists])
            vectors = encoding.embeddings
            rankings = score_lists(lists, vectors)
        else:
            assert query_vectors is not None
            read = [self._read(*each) for each in zip(queries, lists, query_vectors, strict=True)]
            feedback = self._feedback()
            if feedback is None:
                encoding = encode([_texts(hits) for hits in lists])
                vectors = encoding.embeddings
            else:
                best = query_vectors if previous is None else previous
                chosen = [
                    feedback.choose(each.words, cosines(each.vectors, vector), each.vectors)
                    for each, vector in zip(read, best, strict=True)
                ]
                lists = [each.hits for each in read]
                encoding = encode(
                    [
                        _texts([hits[place] for place in choice.places])
                        for hits, choice in zip(lists, chosen, strict=True)
                    ]
                )
                vectors = unit(encoding.embeddings + np.stack([each.added for each in chosen]))
            rankings = [self._ranked(*each) for each in zip(read, vectors, strict=True)]
        made = partial(self._made, queries, query_vectors, encoding, lists, chosen)
        return Ordered(rankings, encoding.usage, vectors, made)

    def _made(
        self,
        queries: Sequence[str],
        query_vectors: Embeddings | None,
        encoding: ListwiseEncoding,
        lists: Sequence[list[Hit]],
        chosen: Sequence[Chosen],
    ) -> list[VectorSum]:
        """What the reranking vectors are the sums of. chosen: nothing without feedback."""
        if query_vectors is None:
            query_vectors = self.encoder.encode_queries(queries)
        places = [each.places for each in chosen] or [list(range(len(hits))) for hits in lists]
        sums = [
            VectorSum(plain, hits, **prompt)
            for plain, hits, prompt in zip(
                query_vectors, lists, prompts_of(encoding, places), strict=True
            )
        ]
        feedback = self._feedback()
        if feedback is None:
            return sums
        return [
            replace(each, shares=feedback.shares(choice.evidence), mean_weight=feedback.weight)
            for each, choice in zip(sums, chosen, strict=True)
        ]


def _texts(hits: Sequence[Hit]) -> list[str]:
    return [hit.document.text for hit in hits]
