"""Evidence: the query's vector moved by feedback, and cosines joined by the candidates' words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from e2rank_rag.evidence import CandidateWords, Evidence, Scores, joined
from e2rank_rag.feedback import Feedback
from e2rank_rag.rerankers.base import Lists, Ordered, VectorReranker
from e2rank_rag.rerankers.explaining import VectorSum, WordParts
from e2rank_rag.rerankers.ranking import cosines, rank, score_by_vector, score_lists, stacked, unit
from e2rank_rag.threads import one_team
from e2rank_rag.types import Embeddings, Hit, TextEncoder
from e2rank_rag.vectors import StoredVectors

FEEDBACK = Feedback(lexical_weight=0.4, temperature=0.3, weight=0.5)
"""How much feedback counts without a prompt, chosen on dev data."""


class ListRead(NamedTuple):
    """One list as feedback and the score read it.

    hits: by plain cosine, best first, so that nothing depends on the order of the candidates.
    plain: their plain cosines, [n]. vectors: [n, dim].
    """

    hits: list[Hit]
    plain: Scores
    vectors: Embeddings
    words: CandidateWords


class WordsReranker(VectorReranker):
    """A reranker that may read the candidates' words: for feedback, and for the score.

    evidence: what words add to the cosines; None takes the model's own, False adds nothing.
    feedback: how much the mean of the candidates' vectors counts; None takes the model's own, False
        adds nothing.
    """

    def __init__(
        self,
        encoder: TextEncoder,
        *,
        evidence: Evidence | Literal[False] | None,
        feedback: Feedback | Literal[False] | None,
        stored_vectors: StoredVectors,
    ) -> None:
        super().__init__(encoder, stored_vectors=stored_vectors)
        self.evidence = evidence
        self.feedback = feedback

    @one_team
    def score(
        self,
        queries: Sequence[str],
        lists: Sequence[Sequence[Hit]],
        vectors: Embeddings,
        *,
        query_vectors: Embeddings | None = None,
    ) -> list[list[Hit]]:
        """The cosines with the reranking vectors, joined by the words of each list."""
        if self._evidence() is None:
            return score_lists(lists, vectors)
        if query_vectors is None:
            query_vectors = self.encoder.encode_queries(queries)
        return [
            self._ranked(self._read(query, hits, plain), vector) if hits else []
            for query, hits, plain, vector in zip(
                queries, lists, query_vectors, vectors, strict=True
            )
        ]

    def _read(self, query: str, hits: Sequence[Hit], query_vector: Embeddings) -> ListRead:
        """Any candidates, whose scores may be of any kind, such as BM25."""
        ordered = score_by_vector(hits, query_vector)
        settings = self.evidence or self.encoder.evidence or Evidence()
        return ListRead(
            hits=ordered,
            plain=np.array([hit.score for hit in ordered], dtype=np.float32),
            vectors=stacked(ordered),
            words=CandidateWords.of(query, [hit.document.text for hit in ordered], settings.bm25),
        )

    def _ranked(self, read: ListRead, vector: Embeddings) -> list[Hit]:
        """The last step: candidates of a list with their scores, given the reranking vector."""
        scores = cosines(read.vectors, vector)
        evidence = self._evidence()
        if evidence is not None:
            known = (self._feedback() or FEEDBACK).evidence(read.words, read.plain)
            scores = joined(scores, evidence.added(read.words, known))
        return rank(read.hits, scores)

    def _word_parts(self, query: str, ranking: list[Hit], made: VectorSum) -> WordParts | None:
        evidence, feedback = self._evidence(), self._feedback()
        if evidence is None and feedback is None:
            return None
        # In the order in which the list was read, which decides between equals.
        ordered = {hit.document.id: hit for hit in (*made.candidates, *ranking)}
        ids = {hit.document.id for hit in ranking}
        read = self._read(query, [hit for id, hit in ordered.items() if id in ids], made.query)
        known = (feedback or FEEDBACK).evidence(read.words, read.plain)
        settings = evidence or Evidence(words=0.0, expansion=0.0)
        asked, expanded = settings.parts(read.words, known)
        deviation = cosines(read.vectors, made.vector()).std()
        weights = np.zeros(read.words.size)
        if settings.expansion > 0.0:
            weights = read.words.expansion_weights(
                known, documents=settings.expansion_documents, terms=settings.expansion_terms
            )
        return WordParts(
            rows={hit.document.id: row for row, hit in enumerate(read.hits)},
            words=deviation * asked,
            expansion=deviation * expanded,
            counted=read.words,
            weights=weights,
        )

    def _evidence(self) -> Evidence | None:
        own = self.encoder.evidence if self.evidence is None else self.evidence
        return own or None

    def _feedback(self) -> Feedback | None:
        own = self.encoder.feedback if self.feedback is None else self.feedback
        return own or None


class EvidenceReranker(WordsReranker):
    """Reranks with any index's encoder: no prompt, and no forward pass but the query's.

    The reranking vector is the query's, moved by feedback, and the score is the cosine with it plus
    what the words of the candidates add.

    evidence: what words add to the cosines; None takes the defaults of `Evidence`.
    feedback: how much the mean of the candidates' vectors counts; None takes `FEEDBACK`. What the
        encoder's recipe says of both does not count.
    stored_vectors: see `StoredVectors`.
    """

    def __init__(
        self,
        encoder: TextEncoder,
        *,
        evidence: Evidence | None = None,
        feedback: Feedback | None = None,
        stored_vectors: StoredVectors = "check",
    ) -> None:
        super().__init__(
            encoder,
            evidence=evidence or Evidence(),
            feedback=feedback or FEEDBACK,
            stored_vectors=stored_vectors,
        )

    def _order(
        self, queries: Sequence[str], lists: Lists, query_vectors: Embeddings | None
    ) -> Ordered:
        if query_vectors is None:
            query_vectors = self.encoder.encode_queries(queries)
        feedback = self._feedback()
        assert feedback is not None
        read = [self._read(*each) for each in zip(queries, lists, query_vectors, strict=True)]
        chosen = [feedback.choose(each.words, each.plain, each.vectors) for each in read]
        vectors = unit(query_vectors + np.stack([each.added for each in chosen]))
        rankings = [self._ranked(*each) for each in zip(read, vectors, strict=True)]

        def made() -> list[VectorSum]:
            return [
                VectorSum(
                    plain,
                    each.hits,
                    shares=feedback.shares(choice.evidence),
                    mean_weight=feedback.weight,
                )
                for plain, each, choice in zip(query_vectors, read, chosen, strict=True)
            ]

        return Ordered(rankings, (), vectors, made)
