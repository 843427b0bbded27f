"""Texts, queries and the comparison of answers that the chaos tests share."""

from __future__ import annotations

import pytest

WORDS = [
    *("cats", "dogs", "ferry", "bridge", "trams", "bread", "salt"),
    *("wind", "glaciers", "router", "prime", "yeast", "stove", "train"),
]
QUERIES = [f"{one} and {other}" for one in WORDS[:8] for other in WORDS[8:]]


def text(number: int) -> str:
    """Different words for each number, so that no two documents have the same score."""
    places = ((number // len(WORDS) ** place + place) % len(WORDS) for place in range(9))
    return " ".join([str(number), *(WORDS[place] for place in places)])


def check_same(answer, expected):
    """The same documents in the same order, scores to 1e-4: batches change the last digits."""
    assert [id for id, _ in answer] == [id for id, _ in expected]
    assert [score for _, score in answer] == pytest.approx([s for _, s in expected], abs=1e-4)
