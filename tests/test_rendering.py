"""Tables say what they are given, on one line each, whatever a text holds."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from e2rank_rag.evaluation.differences import Differences
from e2rank_rag.evaluation.systems import SystemResult
from e2rank_rag.explanation import Explanation, Parts, Pull
from e2rank_rag.rendering import (
    before_after_table,
    explanation_table,
    headline,
    hits_table,
    pulls_table,
    systems_table,
    verification_table,
)
from e2rank_rag.types import Document, Hit
from e2rank_rag.verify import PUBLISHED, Verification


def hit(id, score=0.0, text=None, **meta):
    return Hit(Document(id, text or f"text of {id}", meta), score)


def lines(table, width=160):
    file = io.StringIO()
    Console(file=file, width=width).print(table)
    return file.getvalue().splitlines()


def cells(table):
    """The cells of every row between the table's frame and rules."""
    rows = [line for line in lines(table) if line.startswith("│")]
    return [[cell.strip() for cell in row.strip("│").split("│")] for row in rows]


@pytest.mark.parametrize(
    ("document", "shown"),
    [
        (hit("a", text="short"), "short"),
        (hit("a", text="body", title="A title"), "A title"),
        (hit("a", text="body", title=""), "body"),
        (hit("a", text="two\n lines\tof   text"), "two lines of text"),
        (hit("a", text="x" * 45), "x" * 43 + "…"),
        (hit("a", text="x" * 44), "x" * 44),
        (hit("a", text="word " * 20), "word word word word word word word word wor…"),
        (hit("a", text="nul\x00 and \x1b[31mred"), r"nul\x00 and \x1b[31mred"),
        (hit("a", text="t", title=7), "7"),
    ],
)
def test_headline_is_the_title_or_the_beginning_on_one_line(document, shown):
    assert headline(document) == shown


def test_hits_table_shows_place_score_id_and_headline():
    table = hits_table([hit("a", 0.5), hit("[b]", -0.25, "[red]text")], title="what [i]is[/i] it?")
    assert cells(table) == [
        ["1", "0.500", "a", "text of a"],
        ["2", "-0.250", "[b]", "[red]text"],
    ]
    assert lines(table)[0].strip() == "what [i]is[/i] it?"


def test_hits_table_without_hits_is_only_a_head():
    assert cells(hits_table([], title="q")) == []


def test_control_characters_reach_no_terminal():
    table = hits_table([hit("a\x1b[2J", text="b\x1b]0;title\x07")], title="q")
    assert "\x1b" not in "".join(lines(table))
    assert "\x07" not in "".join(lines(table))


def test_before_after_table_marks_moves_and_what_is_relevant():
    before = [hit("a", 0.9), hit("b", 0.8), hit("c", 0.7)]
    after = [hit("c", 0.6), hit("b", 0.5), hit("new", 0.4)]
    table = before_after_table(before, after, title="[q]", relevant=["b"])
    assert cells(table) == [
        ["1", "text of a", "0.900", "↑2", "text of c", "0.600"],
        ["2", "● text of b", "0.800", "=", "● text of b", "0.500"],
        ["3", "text of c", "0.700", "new", "text of new", "0.400"],
    ]
    assert lines(table)[0].strip() == "[q]"


def test_before_after_table_shows_falls():
    before, after = [hit("a"), hit("b")], [hit("b"), hit("a")]
    assert [row[3] for row in cells(before_after_table(before, after, title="q"))] == ["↑1", "↓1"]


def test_systems_table_is_in_points_and_milliseconds():
    results = {
        "retrieve": SystemResult({"q": {"nDCG@10": 0.64512, "R@100": 1.0}}, 0.0104, {}),
        "[listwise]": SystemResult({"q": {"nDCG@10": 0.0, "R@100": 0.5}}, 2.0, {}),
    }
    table = systems_table(results, title="[c] test")
    assert cells(table) == [
        ["retrieve", "64.51", "100.00", "10"],
        ["[listwise]", "0.00", "50.00", "2000"],
    ]
    assert lines(table)[0].strip() == "[c] test"


def test_systems_table_counts_wins_ties_and_losses_and_stars_what_is_significant():
    queries = [str(query) for query in range(8)]
    values = {
        "retrieve": dict.fromkeys(queries, (0.5, 0.5)),
        "listwise": {query: (0.75, 0.5 if query > "1" else 0.4) for query in queries},
        "rocchio": {query: (0.4 if query == "0" else 0.5, 0.5) for query in queries},
    }
    results = {
        name: SystemResult(
            {q: {"nDCG@10": one, "[R]@100": other} for q, (one, other) in by.items()}, 0.01, {}
        )
        for name, by in values.items()
    }
    by_query = {name: result.by_query for name, result in results.items()}
    differences = Differences.of(by_query, "retrieve")
    table = systems_table(results, title="t", differences=differences)
    assert "nDCG@10 against retrieve" in " ".join(lines(table))
    # All of 8 above: 2 of 2^8 patterns, times 2 methods.
    assert cells(table) == [
        ["retrieve", "50.00", "50.00", "", "", "10"],
        ["listwise", "75.00*", "47.50", "+8 =0 -0", "0.016", "10"],
        ["rocchio", "48.75", "50.00", "+0 =7 -1", "1.000", "10"],
    ]


def test_systems_table_of_one_method_compares_nothing():
    results = {"retrieve": SystemResult({"q": {"nDCG@10": 0.5}}, 0.01, {})}
    differences = Differences.of({"retrieve": results["retrieve"].by_query}, "retrieve")
    assert cells(systems_table(results, title="t", differences=differences)) == [
        ["retrieve", "50.00", "10"]
    ]


def test_verification_table_holds_published_and_our_cosines():
    ours = Verification(plain=np.full((2, 2), 0.25), listwise=np.full((2, 2), -0.5))
    rows = {name: values for name, *values in cells(verification_table(ours))}
    assert rows["published: plain, vLLM"] == ["0.5958", "0.0301", "0.0603", "0.5596"]
    assert rows["published: listwise, vLLM"] == ["0.8517", "0.2404", "0.3310", "0.7905"]
    assert rows["ours: plain"] == ["0.2500"] * 4
    assert rows["ours: listwise"] == ["-0.5000"] * 4
    assert len(rows) == len(PUBLISHED) + 2


def test_moves_are_counted_over_all_candidates_though_few_are_shown():
    before = [hit(name) for name in "abcd"]
    after = [before[3], *before[:3]]
    table = before_after_table(before, after, title="q", rows=2)
    assert [row[3] for row in cells(table)] == ["↑3", "↓1"]


AVERAGE = Parts(query=0.25, feedback=0.125, words=0.0)
TOLD = [
    Explanation(
        1,
        0.875,
        2,
        0.75,
        0.5,
        Parts(query=0.5, feedback=0.25, words=0.125),
        AVERAGE,
        (Pull("b\x1b", True, 0.5, 0.25, 0.0625), Pull("[a]", True, 1.0, 0.75, 0.1875)),
        {"fer\x07ri": 2.0, "[bold]": 1.5},
        {"engin": 1.0},
    ),
    Explanation(2, -0.25, None, None, 0.125, Parts(query=-0.25), AVERAGE),
]


def explained(told):
    hits = [hit("[a]", 0.875, "[red]text"), hit("b\x1b", -0.25, "nul\x00")]
    return [replace(each, explanation=its) for each, its in zip(hits, told, strict=True)]


def test_an_explanation_shows_the_parts_that_some_document_has_and_their_averages():
    table = explanation_table(explained(TOLD), title="what [i]is[/i]\x1b it?")
    assert r"what [i]is[/i]\x1b it?" in lines(table)[0]
    assert cells(table) == [
        ["1", "↑1", "0.750", "0.875", "0.500", "0.500", "0.250", "0.125", "[a]  [red]text"],
        ["2", "new", "", "-0.250", "0.125", "-0.250", "0.000", "0.000", r"b\x1b  nul\x00"],
        ["", "", "", "0.375", "", "0.250", "0.125", "0.000", "average of all candidates"],
    ]
    names = [column.header for column in table.columns]
    assert names == ["#", "", "was", "score", "cosine", "query", "feedback", "words", "document"]


def test_pulls_are_shown_heaviest_first_and_whatever_a_text_holds():
    assert cells(pulls_table(explained(TOLD))) == [
        [
            "1",
            "[a]",
            r"itself 1.00 (+0.188), b\x1b 0.50 (+0.062)",
            r"fer\x07ri 2.0, [bold] 1.5",
            "engin 1.0",
        ],
        ["2", r"b\x1b", "", "", ""],
    ]
    (row, _) = cells(pulls_table(explained(TOLD), most=1))
    assert row[2:] == ["itself 1.00 (+0.188)", r"fer\x07ri 2.0", "engin 1.0"]


def test_scores_without_parts_are_shown_with_their_ranks():
    told = [Explanation(1, 0.875, 1, 0.5), Explanation(2, -0.25, 2, 0.75)]
    assert cells(explanation_table(explained(told), title="q")) == [
        ["1", "=", "0.500", "0.875", "[a]  [red]text"],
        ["2", "=", "0.750", "-0.250", r"b\x1b  nul\x00"],
    ]
    assert cells(explanation_table([], title="q")) == []


def test_on_a_narrow_terminal_headlines_stand_beside_the_pulls():
    table = explanation_table(explained(TOLD), title="q", width=80)
    assert cells(table) == [
        ["1", "↑1", "0.875", "0.500", "0.250", "0.125", "[a]"],
        ["2", "new", "-0.250", "-0.250", "0.000", "0.000", r"b\x1b"],
        ["", "", "0.375", "0.250", "0.125", "0.000", "average"],
    ]
    pulls = cells(pulls_table(explained(TOLD), width=80))
    assert [row[1] for row in pulls] == ["[a]  [red]text", r"b\x1b  nul\x00"]
    assert len(max(lines(table, width=80), key=len)) <= 80
