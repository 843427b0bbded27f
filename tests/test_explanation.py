"""Parts of a score: sums, differences and averages."""

from __future__ import annotations

from e2rank_rag.explanation import Explanation, Parts, Pull

PARTS = Parts(query=0.5, prompt=0.25, feedback=0.125, words=-0.5, expansion=1.0)


def test_the_parts_of_a_score_are_summed_compared_and_averaged():
    other = Parts(query=0.25, words=0.5)
    assert PARTS.score == 1.375
    assert PARTS.values() == [0.5, 0.25, 0.125, -0.5, 1.0]
    assert PARTS.above(other) == Parts(0.25, 0.25, 0.125, -1.0, 1.0)
    assert Parts.average([PARTS, other]) == Parts(0.375, 0.125, 0.0625, 0.0, 0.5)


def test_as_a_dict_it_has_plain_values():
    pull = Pull("a", in_prompt=True, cosine=0.5, weight=0.75, part=0.25)
    told = Explanation(1, 1.375, None, None, 0.5, PARTS, PARTS, (pull,), {"ferri": 2.0})
    parts = {"query": 0.5, "prompt": 0.25, "feedback": 0.125, "words": -0.5, "expansion": 1.0}
    assert told.as_dict() == {
        "rank": 1,
        "score": 1.375,
        "rank_before": None,
        "score_before": None,
        "cosine": 0.5,
        "parts": parts,
        "average": parts,
        "pulls": [{"id": "a", "in_prompt": True, "cosine": 0.5, "weight": 0.75, "part": 0.25}],
        "words": {"ferri": 2.0},
        "expansion_words": {},
    }
