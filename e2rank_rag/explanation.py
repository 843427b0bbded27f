"""Why a document has its score: the parts of the score, and what they come from.

    hits = reranker.rerank("what prevents falls?", candidates, explain=True)
    hits[0].explanation.parts      # they sum to hits[0].score

A part says something about a rank only beside the same part of the other candidates: what all of
them get moves none of them. So an explanation has the averages over the list too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any


@dataclass(frozen=True, slots=True)
class Parts:
    """What a score is the sum of. The first three sum to the cosine with the reranking vector.

    query: the summand of the plain query's vector. prompt: of the prompt's vector. feedback: of the
        mean of the candidates' vectors.
    words: what the query's words in the document add, less than nothing where it holds fewer than
        others. expansion: what the words of the best candidates add.
    """

    query: float = 0.0
    prompt: float = 0.0
    feedback: float = 0.0
    words: float = 0.0
    expansion: float = 0.0

    @property
    def score(self) -> float:
        """The sum of the parts."""
        return sum(self.values())

    def values(self) -> list[float]:
        """The parts in their order."""
        return [getattr(self, each.name) for each in fields(self)]

    def above(self, other: Parts) -> Parts:
        """How much each part is above that of another."""
        return Parts(*(mine - its for mine, its in zip(self.values(), other.values(), strict=True)))

    @classmethod
    def average(cls, parts: Iterable[Parts]) -> Parts:
        """The mean of each part, of one or more."""
        rows = [each.values() for each in parts]
        return cls(*(sum(column) / len(rows) for column in zip(*rows, strict=True)))


@dataclass(frozen=True, slots=True)
class Pull:
    """How near an explained document is to one that the reranker read, and what it got from it.

    id: of the document that was read; the explained one may be among them, with a cosine of 1.
    in_prompt: whether the prompt showed it.
    cosine: of both documents' vectors.
    weight: of the read document in the mean of the candidates' vectors, 0 to 1.
    part: what it gives `Parts.feedback`. What a prompt's vector owes to one of its documents is not
        known: the cosine says how alike the two documents are, and no more.
    """

    id: str
    in_prompt: bool
    cosine: float
    weight: float
    part: float


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a document has its score and its rank.

    rank, score: after the reranking; 1 is the best of all candidates.
    rank_before, score_before: as the reranker got the candidate. None: a second search retrieved
        it, or it had no score.
    cosine: of the document's and the plain query's vectors.
    parts: they sum to the score, to 1e-6. average: each part's mean over the candidates: a part
        above it lifts the document.
    pulls: of the documents in the prompt, in its order; of a reranker without a prompt those of the
        heaviest documents in the mean.
    words: the stems of the query that the document holds, with what each adds to its BM25 score,
        heaviest first. expansion_words: the same for the stems of the best candidates, up to 5.

    A ResRank, a cross-encoder, and a reranker with windows have no such parts: cosine, parts and
    average are None then, and the rest is empty.
    """

    rank: int
    score: float
    rank_before: int | None
    score_before: float | None
    cosine: float | None = None
    parts: Parts | None = None
    average: Parts | None = None
    pulls: tuple[Pull, ...] = ()
    words: Mapping[str, float] = field(default_factory=dict)
    expansion_words: Mapping[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The same as JSON holds it."""
        return {**asdict(self), "pulls": [asdict(pull) for pull in self.pulls]}
