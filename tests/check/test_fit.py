"""Each difference between a described pipeline and a collection is named with its change."""

from __future__ import annotations

import numpy as np
import pytest

from e2rank_rag.check.fit import Described, mismatches
from e2rank_rag.check.probe import Match
from e2rank_rag.check.variants import Variant


@pytest.fixture
def match_of(bert):
    def match_of(limits=None, separators=(), **variant):
        found = Variant(**{"tokens": 64, **variant})
        return Match(
            model="m",
            variant=found,
            recipe=found.recipe(bert.recipe, None),
            own=bert.recipe,
            digest="d",
            cosines=np.ones(4),
            ids=("a", "b", "c", "d"),
            limits=limits or (found.tokens,),
            separators=separators,
        )

    return match_of


def changes(described, match):
    return [(each.what, each.change) for each in mismatches(described, match)]


def test_a_pipeline_that_makes_the_vectors_has_no_mismatch(match_of):
    match = match_of(fields=("title",), separators=("\n", " "), limits=(64, 128))
    for separator, length in (("\n", 64), (" ", 128), (" ", None)):
        assert not mismatches(Described("m", "d", length, ("title",), separator), match)


def test_another_model_is_the_only_mismatch(match_of):
    described = Described("other", "e", 512, ("year",))
    found = changes(described, match_of())
    assert found == [("model", "open m, or index again with other")]


def test_every_part_is_named_with_what_to_set(match_of):
    match = match_of(fields=("title",), separator=". ", prefix="passage: ", separators=(". ",))
    assert changes(Described("m", "d", 256), match) == [
        ("text", "set meta_fields_to_embed=['title'], embedding_separator='. '"),
        ("prefix", "set the document's prefix to 'passage: '"),
        ("length", "set max_length=64"),
    ]


def test_a_field_too_many_is_named(match_of):
    found = mismatches(Described("m", "d", 64, ("title",)), match_of())
    (only,) = found
    assert (only.collection, only.change) == ("the text alone", "set meta_fields_to_embed=[]")


def test_another_separator_is_named_where_it_can_be_told_apart(match_of):
    match = match_of(fields=("title",), separator=". ", separators=(". ",))
    (only,) = mismatches(Described("m", "d", 64, ("title",), " - "), match)
    assert only.pipeline == "title in front of the text, joined by ' - '"
    assert only.collection == "title in front of the text, joined by '. '"
