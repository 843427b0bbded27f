"""The page holds every figure, needs nothing but itself, and no text can steer it."""

from __future__ import annotations

import html
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from e2rank_rag.report.page import as_html, as_record, json_path, write_report
from tests.report.parts import case, dataset, methods, report, row

HOSTILE = (
    "x<script>alert(1)</script></style><img src=http://e.org/a onerror=a()>\"'{{ 1 }}\x1b\ud800"
)
SHOWN = HOSTILE.replace("\x1b", "\\x1b").replace("\ud800", "\\ud800")


class Tags(HTMLParser):
    """The tags of a page, its attributes, and the text in it."""

    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], set(), set(), []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag not in ("meta", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def hostile():
    one = case(
        dataset=HOSTILE,
        query_id=HOSTILE,
        query=HOSTILE,
        rows_before=(row(1, HOSTILE, text=HOSTILE, grade=1),),
    )
    return report(
        dataset(HOSTILE, won=(one,)),
        model=HOSTILE,
        without=(HOSTILE,),
        not_measured={"prompt": HOSTILE},
    )


def test_hostile_texts_are_text_on_the_page():
    plain, attacked = as_html(report()), as_html(hostile())
    tags = Tags(attacked)
    assert tags.open == []
    assert tags.tags <= Tags(plain).tags
    assert tags.attributes <= Tags(plain).attributes
    assert "script" not in tags.tags | {"img"} & tags.tags
    assert SHOWN in "".join(tags.text)
    assert attacked.count(html.escape(HOSTILE[:30], quote=False)) > 8


def test_the_page_asks_the_network_for_nothing():
    page = as_html(report())
    links = re.findall(r'(?:src|href|srcset|action|data)="([^"]*)"', page)
    assert all(link.startswith("#") or link == "data:," for link in links)
    assert not re.search(r"url\(|@import|<script|<iframe|https?://", page)
    assert "default-src 'none'" in page


def test_every_link_within_the_page_leads_to_a_heading():
    page = as_html(report())
    assert set(re.findall(r'href="#(\w+)"', page)) == set(re.findall(r'<h2 id="(\w+)"', page))


def test_figures_stars_and_changes_are_in_the_table():
    values = [0.1 * (n % 10) for n in range(10)]
    figures = methods({"hybrid": values, "listwise": [value + 0.1 for value in values]})
    page = " ".join(as_html(report(dataset(methods=figures, queries=10))).split())
    assert re.search(
        r'class="subject"><span>55.00\*\s*<span class="change up">\+10.00</span>', page
    )
    assert "<span>+10 =0 \u22120" in page


def test_what_was_not_measured_is_said():
    page = as_html(report())
    assert "4 of 8 queries" in " ".join(page.split())
    assert "untrained prompt (the model has no listwise adapter)" in page


def test_queries_are_shown_with_what_the_prompt_held():
    page = " ".join(as_html(report()).split())
    assert "1 query that won most" in page
    assert "0 queries that lost most" in page
    assert "In the prompt: 2 documents, 1 of them shortened, 90 tokens" in page
    assert '<span class="grade relevant">grade 1</span> <span class="id">d2</span>' in page
    assert "now below all candidates" in page
    assert '<span class="id">d9</span> (grade 2, rank 50 \u2192 20)' in page
    assert '<span class="id">d8</span> (grade 1, not among the candidates)' in page


def test_the_parts_of_the_prompt_are_shown_or_said_to_be_empty():
    page = " ".join(as_html(report()).split())
    assert '<td data-label="candidates">inside</td><td data-label="queries">4</td>' in page
    assert '<td data-label="candidates">outside</td><td data-label="queries">0</td>' in page


def test_both_files_are_written_and_the_json_holds_what_the_page_shows(tmp_path):
    made = hostile()
    page = tmp_path / "new" / "report.html"
    write_report(made, page)
    assert sorted(path.name for path in page.parent.iterdir()) == ["report.html", "report.json"]
    assert page.read_text(encoding="utf-8") == as_html(made)
    record = json.loads(json_path(page).read_text(encoding="utf-8"))
    assert record == json.loads(json.dumps(as_record(made)))
    assert record["model"] == HOSTILE
    assert record["datasets"][0]["methods"]["listwise"]["mean"] == pytest.approx(0.55)
    assert record["means"]["listwise"] == pytest.approx(0.55)
    assert record["means_without"]["listwise"] is None
    assert len(record["summary"]) >= 4


def test_another_ending_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match=r"ends in \.html, got .*report\.json"):
        write_report(report(), tmp_path / "report.json")
    assert list(tmp_path.iterdir()) == []


def test_a_value_that_is_no_number_is_refused(tmp_path):
    wrong = replace(report(), datasets=(dataset(won=(case(after=math.nan),)),))
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_report(wrong, tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []
