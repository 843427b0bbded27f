"""What is printed cannot steer a terminal, and says what was there."""

from __future__ import annotations

import io
import json
import logging
import unicodedata
import warnings

from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from e2rank_rag import terminal
from e2rank_rag.terminal import json_text, printable, printable_lines, printable_logs, say

STEERING = st.characters(categories=["Cc", "Cf", "Cs", "Zl", "Zp"])
ANY_TEXT = st.text(st.one_of(STEERING, st.characters(), st.sampled_from('ab[/]\\"é')))
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), ANY_TEXT),
    lambda inner: st.one_of(st.lists(inner), st.dictionaries(ANY_TEXT, inner)),
    max_leaves=8,
)


def steers(text):
    """The characters of an output that a terminal would not show as they are."""
    kinds = {"Cc", "Cf", "Cs", "Zl", "Zp"}
    return {c for c in text if unicodedata.category(c) in kinds} - {"\n", "\u200c", "\u200d"}


@settings(deadline=None)
@given(ANY_TEXT)
def test_no_text_steers_the_terminal(text):
    shown = printable(text)
    assert steers(shown) == set()
    assert "\n" not in shown
    assert steers(printable_lines(text)) == set()


@settings(deadline=None)
@given(st.text(st.characters(categories=["L", "N", "P", "S", "Zs", "M"])))
def test_ordinary_text_is_shown_as_it_is(text):
    assert printable(text) == text


def test_what_is_hidden_is_shown_escaped():
    assert printable("a\x1b[2Jb\x9b\x7f\u202ec\n\udc9b\U000e0041") == (
        r"a\x1b[2Jb\x9b\x7f\u202ec\n\udc9b\U000e0041"
    )
    assert printable("joined\u200cby\u200dthese\xa0two") == "joined\u200cby\u200dthese\xa0two"


@settings(deadline=None)
@given(JSON)
def test_json_says_the_same_and_steers_nothing(value):
    shown = json_text(value)
    assert json.loads(shown) == value
    assert steers(shown) == set()
    shown.encode()


@settings(deadline=None)
@given(ANY_TEXT)
def test_a_line_that_is_said_is_one_line(text):
    file = io.StringIO()
    say(Console(file=file, width=40), text, label="error:")
    assert file.getvalue() == f"error: {printable(text)}\n"


def test_a_line_that_is_said_has_a_limit(monkeypatch):
    monkeypatch.setattr(terminal, "SHOWN_CHARACTERS", 10)
    file = io.StringIO()
    say(Console(file=file, width=200), "x" * 1234)
    assert file.getvalue() == "x" * 10 + "… (1,224 characters more)\n"


def test_logs_and_warnings_of_all_libraries_are_printable():
    file = io.StringIO()
    handler = logging.StreamHandler(file)
    logger = logging.getLogger("another.library")
    logger.addHandler(handler)
    try:
        with printable_logs():
            logger.warning("read %s", "\x1b[2J\u202e")
            shown = warnings.formatwarning("\x1b]0;t\x07", UserWarning, "f.py", 1, "")
        logger.warning("\x1b")
    finally:
        logger.removeHandler(handler)
    assert file.getvalue().startswith(r"read \x1b[2J\u202e")
    assert file.getvalue().endswith("\x1b\n")
    assert shown == "f.py:1: UserWarning: \\x1b]0;t\\x07\n"
