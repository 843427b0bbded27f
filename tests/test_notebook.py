"""The notebooks' slice follows its rule, and the table and picture show what the rankings say."""

from __future__ import annotations

import sys

import pytest

from e2rank_rag.data import shipped_collection
from e2rank_rag.explanation import Explanation, Parts
from e2rank_rag.notebook import (
    Slice,
    explanation_picture,
    figures_table,
    rank_of_first,
    rank_picture,
    scifact_slice,
)
from e2rank_rag.types import Document, Hit

QRELS = {"a": {"1": 1}, "b": {"2": 1}, "c": {"3": 1}}
BEFORE = {"a": ["9", "8", "1"], "b": ["2", "9"], "c": ["9", "3"]}
AFTER = {"a": ["1", "9", "8"], "b": ["2", "9"], "c": ["9", "8", "3"]}
SMALL = Slice([], {"a": "first claim", "b": "second claim", "c": "third claim"}, QRELS)


def cells(table):
    return list(zip(*(column.cells for column in table.columns), strict=True))


def test_the_slice_holds_the_first_test_claims_and_every_abstract_judged_for_them():
    dataset = shipped_collection("scifact")
    small = scifact_slice(3, hard_negatives=2)
    assert list(small.queries.items()) == list(dataset.queries("test").items())[:3]
    assert small.qrels == {claim: dataset.qrels("test")[claim] for claim in small.queries}
    kept = [document.id for document in small.documents]
    assert {id for grades in small.qrels.values() for id in grades} <= set(kept)
    corpus = [document.id for document in dataset.documents()]
    assert kept == [id for id in corpus if id in set(kept)]  # in corpus order
    assert len(kept) <= 3 * 2 + sum(map(len, small.qrels.values()))


def test_without_hard_negatives_only_judged_abstracts_are_kept():
    small = scifact_slice(5, hard_negatives=0)
    judged = {id for grades in small.qrels.values() for id in grades}
    assert {document.id for document in small.documents} == judged


def test_hard_negatives_share_words_with_their_claim():
    none, one = (scifact_slice(1, hard_negatives=count) for count in (0, 4))
    words = set(next(iter(one.queries.values())).lower().rstrip(".").split())
    added = [d for d in one.documents if d not in none.documents]
    assert added
    assert all(words & set(d.text.lower().split()) for d in added)


def test_the_rank_of_the_first_relevant_document_counts_from_one():
    assert rank_of_first(["9", "1", "2"], {"1", "2"}) == 2
    assert rank_of_first(["9"], {"1"}) is None


def test_the_table_counts_queries_with_an_early_relevant_document():
    rows = cells(figures_table({"plain": BEFORE, "reranked": AFTER}, QRELS, first=2))
    # nDCG of one relevant document is 1 / log2(rank + 1): 1/2, 1 and 0.6309; 1, 1 and 1/2.
    assert rows == [
        ("plain", "71.03", "2 of 3", "1 of 3"),
        ("reranked", "83.33", "2 of 3", "2 of 3"),
    ]


def test_a_query_without_a_ranking_counts_as_not_answered():
    ((_, ndcg, early, first),) = cells(figures_table({"half": {"b": ["2"]}}, QRELS))
    assert (ndcg, early, first) == ("33.33", "1 of 3", "1 of 3")


def test_the_picture_has_one_row_for_each_query_that_moves_and_the_greatest_gain_on_top():
    pytest.importorskip("matplotlib")
    (axes,) = rank_picture(BEFORE, AFTER, SMALL).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["third claim", "first claim"]
    assert [(note.xyann, note.xy) for note in axes.texts] == [((2, 0), (3, 0)), ((3, 1), (1, 1))]
    assert "2 of 3" in axes.get_title()


def test_a_relevant_document_that_a_ranking_lacks_is_named():
    pytest.importorskip("matplotlib")
    with pytest.raises(ValueError, match="'a'"):
        rank_picture(BEFORE, {**AFTER, "a": ["9"]}, SMALL)


def test_without_matplotlib_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"\[plots\]"):
        rank_picture(BEFORE, AFTER, SMALL)


def explained(parts, rank, before):
    average = Parts(query=0.1, words=0.0)
    told = Explanation(rank, parts.score, before, 0.5, 0.5, parts, average)
    return Hit(Document(str(rank), f"a $text$ of {rank}\x1b"), parts.score, explanation=told)


def test_an_explanation_is_drawn_as_bars_from_the_average():
    hits = [
        explained(Parts(query=0.5, words=0.25), 1, 3),
        explained(Parts(query=0.3, words=-0.25), 2, None),
    ]
    (axes,) = explanation_picture(hits).axes
    bars = {bars.get_label(): [bar.get_width() for bar in bars] for bars in axes.containers}
    assert bars == {"query": pytest.approx([0.4, 0.2]), "words": pytest.approx([0.25, -0.25])}
    (sums, _) = axes.lines
    assert sums.get_xdata() == pytest.approx([0.65, -0.05])
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == [r"a $text$ of 1\x1b  3→1", r"a $text$ of 2\x1b  new→2"]
    lefts = [bar.get_x() for bars in axes.containers for bar in bars]
    assert lefts == pytest.approx([0.0, 0.0, 0.4, 0.0])


def test_hits_without_parts_cannot_be_drawn():
    told = Explanation(1, 0.5, 1, 0.5)
    for hits in (
        [],
        [Hit(Document("a", "a"), 0.5)],
        [Hit(Document("a", "a"), 0, explanation=told)],
    ):
        with pytest.raises(ValueError, match="explain=True"):
            explanation_picture(hits)
