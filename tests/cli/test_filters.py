"""Conditions are read as they are meant, or refused."""

from __future__ import annotations

import re

import pytest
import typer

from e2rank_rag.cli.search import parse_filters


@pytest.mark.parametrize(
    ("conditions", "filter"),
    [
        ([], {}),
        (["a=5"], {"a": 5}),
        (["a=5.5"], {"a": 5.5}),
        (["a=-1"], {"a": -1}),
        (["a=true"], {"a": True}),
        (["a=True"], {"a": "True"}),
        (['a="5"'], {"a": "5"}),
        (["a=five"], {"a": "five"}),
        (["a="], {"a": ""}),
        (["a=NaN"], {"a": "NaN"}),
        (["a=Infinity"], {"a": "Infinity"}),
        (["a={"], {"a": "{"}),
        (['a="{}"'], {"a": "{}"}),
        (['a="=5"'], {"a": "=5"}),
        (["a=[1, 2]"], {"a": [1, 2]}),
        ([" a = b "], {"a": "b"}),
        (["a.b=c"], {"a.b": "c"}),
        (["a=b=c"], {"a": "b=c"}),
        (["a=b>=c"], {"a": "b>=c"}),
        (["a>5"], {"a": {"gt": 5}}),
        (["a>=5"], {"a": {"gte": 5}}),
        (["a<5"], {"a": {"lt": 5}}),
        (["a<=5"], {"a": {"lte": 5}}),
        (["a<=x>y"], {"a": {"lte": "x>y"}}),
        (["a>=2020-01-01"], {"a": {"gte": "2020-01-01"}}),
        (["a>=5", "a<9"], {"a": {"gte": 5, "lt": 9}}),
        (["a=1", "a=2"], {"a": [1, 2]}),
        (["a=1", "a=2", "a=x"], {"a": [1, 2, "x"]}),
        (["a=1", "b=2"], {"a": 1, "b": 2}),
        (["größe=5"], {"größe": 5}),
    ],
)
def test_conditions_are_read(conditions, filter):
    parsed = parse_filters(conditions)
    assert parsed == filter
    assert [type(value) for value in parsed.values()] == [type(v) for v in filter.values()]


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        (["a"], "key=value or key>=5, got 'a'"),
        ([""], "key=value or key>=5, got ''"),
        (["=5"], "got '=5'"),
        ([" =5"], "got ' =5'"),
        ([">=5"], "got '>=5'"),
        (["a!=5"], "got 'a!=5'"),
        (['a={"gte": 1}'], "write a=5, or a>=5 for a range"),
        (["a==5"], 'a text that begins with = is a="=5"'),
        (["a=>5"], "write a=5, or a>=5 for a range"),
        (["a>==5"], "write a=5, or a>=5 for a range"),
        (["a=1", "a>2"], "a: = and > cannot be combined"),
        (["a>2", "a=1"], "a: = cannot be combined with a range"),
        (["a>2", "a>3"], "a: > is given twice"),
    ],
)
def test_conditions_that_cannot_be_meant_are_refused(conditions, message):
    with pytest.raises(typer.BadParameter, match=re.escape(message)):
        parse_filters(conditions)
