"""Which documents of an example are relevant, which are negatives, and which a list takes.

A teacher's order says which document is better, not which is relevant: its labels, n to 1, are all
above 0. Its relevant documents are those that people judged relevant, and the teacher's first.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from e2rank_rag.types import RankingExample

FEWEST_OF_AN_ORDER = 4
"""Fewer labels may be grades: 1 and 2 are common."""


def is_order(example: RankingExample) -> bool:
    """Whether the labels are a teacher's order, not grades.

    True if the example says so, and for labels that are 1 to n, each once, if a positive is given
    or n is at least `FEWEST_OF_AN_ORDER`.
    """
    if example.judged is not None:
        return True
    count = len(example.labels)
    long_enough = count >= (2 if example.positive is not None else FEWEST_OF_AN_ORDER)
    return long_enough and sorted(example.labels) == list(range(1, count + 1))


def known_places(example: RankingExample) -> list[int]:
    """The documents with a grade, or beside a teacher's order a judgement, above 0."""
    grades = (example.judged or ()) if is_order(example) else example.labels
    known = {place for place, grade in enumerate(grades) if grade > 0}
    if example.positive is not None:
        known.add(example.positive)
    return sorted(known)


def relevant_places(example: RankingExample, *, best: bool = True) -> list[int]:
    """The documents of `known_places` and the best of a teacher's order.

    best: False leaves out the best of an order, unless no other document is relevant.
    """
    known = known_places(example)
    if is_order(example) and (best or not known):
        known = sorted({*known, best_place(example)})
    return known


def relevant_texts(example: RankingExample, *, best: bool = True) -> frozenset[str]:
    """Texts that are not negatives of this query: relevant documents, and copies of the query."""
    relevant = (example.documents[place] for place in relevant_places(example, best=best))
    return frozenset([*relevant, *example.copies])


def other_places(example: RankingExample, relevant: Sequence[int]) -> list[int]:
    """The negatives: all documents that are neither relevant nor copies of the query.

    If queries are documents (duplicate questions), a search retrieves the query itself first.
    """
    taken = {*relevant, *own_places(example)}
    return [place for place in range(len(example.documents)) if place not in taken]


def own_places(example: RankingExample) -> list[int]:
    """Documents that are copies of the query."""
    own = {words(example.query), *map(words, example.copies)}
    # Few documents begin like the query, and splitting a long list into words takes milliseconds.
    first = tuple(text.partition(" ")[0] for text in own)
    return [
        place
        for place, text in enumerate(example.documents)
        if text.lstrip().startswith(first) and words(text) in own
    ]


def words(text: str) -> str:
    """The text with single spaces, so that white space makes no two texts different."""
    return " ".join(text.split())


def best_place(example: RankingExample) -> int:
    """The document with the highest label, without copies of the query, which any teacher puts
    first."""
    own = set(own_places(example))
    places = [place for place in range(len(example.labels)) if place not in own]
    return max(places or range(len(example.labels)), key=example.labels.__getitem__)


def without_query(example: RankingExample) -> RankingExample:
    """The example without copies of the query, except those that are relevant."""
    relevant = relevant_places(example)
    places = sorted([*relevant, *other_places(example, relevant)])
    if len(places) == len(example.documents):
        return example
    judged = None
    if is_order(example):
        judged = tuple(example.judged[place] for place in places) if example.judged else ()
    return replace(
        example,
        documents=tuple(example.documents[place] for place in places),
        labels=tuple(example.labels[place] for place in places),
        ids=tuple(example.ids[place] for place in places if example.ids),
        positive=None if example.positive is None else places.index(example.positive),
        judged=judged,
    )


def judgements(example: RankingExample) -> tuple[float, ...]:
    """The judgement of each document; () for a teacher's labels without judgements."""
    if not is_order(example):
        return example.labels
    if example.judged:
        return example.judged
    if example.positive is None:
        return ()
    return tuple(float(place == example.positive) for place in range(len(example.labels)))


def grades(example: RankingExample) -> tuple[float, ...]:
    """Judgements to mine by; without any, a teacher's best document is relevant."""
    judged = judgements(example)
    if any(grade > 0 for grade in judged):
        return judged
    best = best_place(example)
    return tuple(float(place == best) for place in range(len(example.labels)))


def leading_places(relevant: Sequence[int], others: Sequence[int], size: int) -> list[int]:
    """Up to half of a list relevant documents, then others, both in their order.

    If there are too few others, relevant documents take their places.
    """
    most = size - min(len(others), size // 2)
    places = list(relevant[:most])
    return [*places, *others[: size - len(places)]]


def drawn_places(
    relevant: Sequence[int], others: Sequence[int], count: int, draw: random.Random
) -> list[int]:
    """One of the relevant documents, then up to `count` of the others, all by chance."""
    first = draw.choice(relevant)
    left = [place for place in others if place != first]
    return [first, *draw.sample(left, min(count, len(left)))]


def scored_places(
    example: RankingExample, size: int, positive: Literal["highest", "known"]
) -> tuple[list[int], int]:
    """The documents of a list, and which of them is the positive of the InfoNCE.

    Relevant documents and others are taken as they come, see `leading_places`, not by chance:
    relevant documents that were not retrieved are at the end, and a list full of them is unlike any
    list at test time. A positive that is left out takes the first place.
    """
    relevant = relevant_places(example, best=positive == "highest")
    places = leading_places(relevant, other_places(example, relevant), size)
    if positive == "known":
        chosen = _known_positive(example)
    elif is_order(example):
        chosen = best_place(example)
    else:
        chosen = max(places, key=example.labels.__getitem__)
    if chosen not in places:
        places[0] = chosen
    return places, places.index(chosen)


def _known_positive(example: RankingExample) -> int:
    if example.positive is None:
        raise ValueError(
            f'positive is "known", but the example of {example.query[:60]!r} names none'
        )
    return example.positive
