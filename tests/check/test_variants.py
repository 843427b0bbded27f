"""The text of a variant is Haystack's, and its recipe makes the vectors of that text."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from e2rank_rag.check.variants import (
    EmbeddedLayout,
    Variant,
    field_choices,
    own_prefix,
    pairs,
    with_prefix,
)
from e2rank_rag.prompts import PLAIN, Prompts
from e2rank_rag.store import Layout
from e2rank_rag.types import Document

FIELDS = {"title": "Ferries", "year": "2001"}


def test_fields_stand_in_front_in_their_order_and_missing_ones_are_left_out():
    variant = Variant(tokens=64, fields=("year", "nothing", "title"), separator=" - ")
    assert variant.text("A ferry.", FIELDS) == "2001 - Ferries - A ferry."
    assert Variant(tokens=64).text("A ferry.", FIELDS) == "A ferry."


def test_the_recipe_changes_only_what_differs(bert):
    own = bert.recipe
    assert Variant(tokens=own.document_tokens).recipe(own, None) == own
    changed = Variant(tokens=64, prefix="passage: ").recipe(own, 16)
    assert (changed.document_tokens, changed.query_tokens, changed.truncate_dim) == (64, 64, 16)
    assert changed.prompts.document_text("cats") == "passage: cats"
    assert changed.prompts.query_text("cats") == "query: cats"


def test_the_recipe_makes_the_vectors_of_the_text_with_its_prefix(bert):
    recipe = Variant(tokens=64, prefix="passage: ").recipe(bert.recipe, None)
    with bert.with_recipe(recipe) as encoder:
        found = encoder.encode_documents(["cats purr"])
    expected = bert.encode_documents(["passage: cats purr"])
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_the_own_prefix_is_what_stands_before_the_document():
    assert own_prefix(PLAIN) == ""
    assert own_prefix(Prompts(document="passage: {document}")) == "passage: "
    assert own_prefix(Prompts(document="{document} [end]")) is None
    assert with_prefix(PLAIN, "") is PLAIN
    assert with_prefix(PLAIN, "mine: ").query == PLAIN.query


def test_a_prefix_that_is_a_place_of_the_template_is_refused():
    with pytest.raises(ValueError, match="holds a place"):
        with_prefix(PLAIN, "{query} ")


def test_fields_are_tried_alone_in_pairs_and_as_the_user_says():
    assert field_choices(["a", "b"], ()) == [(), ("a",), ("b",)]
    assert field_choices(["a"], ("a", "c", "b")) == [(), ("a", "c", "b"), ("a",)]
    assert pairs(["a", "b"]) == [("a", "b"), ("b", "a")]


def test_a_layout_reads_the_text_that_was_embedded():
    layout = EmbeddedLayout.over(Layout(), Variant(tokens=64, fields=("title",), separator=" "))
    payload = {"id": "1", "content": "A ferry.", "meta": {"title": "Ferries"}}
    point = SimpleNamespace(id="x", payload=payload)
    assert layout.document(point) == Document("1", "Ferries A ferry.", {"title": "Ferries"})
    assert layout.point_id("1") == Layout().point_id("1")
