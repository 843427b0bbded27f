"""Lists are what the retrieval finds, labelled by the qrels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from e2rank_rag.training.mining import NEAR_POSITIVE, Embedded, mine_lists, nearest
from e2rank_rag.training.word_index import WordIndex
from e2rank_rag.types import Document
from e2rank_rag.words import Bm25
from tests.encoders import TableEncoder


def unit(angle):
    return [np.cos(np.radians(angle)), np.sin(np.radians(angle))]


ANGLES = {"d0": 5, "d1": 20, "d2": 40, "d3": 60, "d4": 80}
VECTORS = {**{f"text of {id}": unit(angle) for id, angle in ANGLES.items()}, "q": unit(0)}


@pytest.fixture
def encoder():
    return TableEncoder(VECTORS)


@pytest.fixture
def embedded(encoder):
    return Embedded.of(encoder, [Document(id, f"text of {id}") for id in ANGLES])


def test_a_list_is_the_nearest_documents_in_order_with_their_grades(encoder, embedded):
    lists = mine_lists(encoder, embedded, {"1": "q"}, {"1": {"d2": 2, "d0": 0}}, depth=4)
    example = lists["1"]
    assert example.query == "q"
    assert example.ids == ("d0", "d1", "d2", "d3")
    assert example.documents[0] == "text of d0"
    assert example.labels == (0.0, 0.0, 2.0, 0.0)


def test_positives_stand_at_the_end_where_none_was_found(encoder, embedded):
    qrels = {"1": {"d4": 1, "d0": -1, "d3": 2}}
    found = mine_lists(encoder, embedded, {"1": "q"}, qrels, depth=2)["1"]
    assert (found.ids, found.labels) == (("d0", "d1", "d4", "d3"), (0.0, 0.0, 1.0, 2.0))
    found = mine_lists(encoder, embedded, {"1": "q"}, qrels, depth=4)["1"]
    assert found.ids == ("d0", "d1", "d2", "d3")
    bare = mine_lists(encoder, embedded, {"1": "q"}, qrels, depth=2, add_missing=False)["1"]
    assert bare.ids == ("d0", "d1")


def test_hybrid_candidates_are_the_fusion_of_cosines_and_words(encoder):
    texts = {**{f"text of {id}": f"text of {id}" for id in ANGLES}, "a q": "a q", "q q b": "q q b"}
    table = {**VECTORS, "a q": unit(120), "q q b": unit(70)}
    encoder = TableEncoder(table)
    documents = [Document(text, text) for text in texts]
    index = WordIndex.of(Bm25(), list(texts))
    assert [list(texts)[row] for row in index.best(["q"], 9)[0]] == ["q q b", "a q"]
    embedded = replace(Embedded.of(encoder, documents), words=index)
    found = mine_lists(encoder, embedded, {"1": "q"}, {"1": {"text of d1": 1}}, depth=4)["1"]
    # 1/2 each for the first of both, 1/3 each for the second.
    assert found.ids == ("text of d0", "q q b", "text of d1", "a q")
    assert found.labels == (0.0, 0.0, 1.0, 0.0)


def test_unjudged_documents_of_the_first_places_can_be_left_out(encoder, embedded):
    qrels = {"1": {"d2": 1, "d0": 0}}
    found = mine_lists(encoder, embedded, {"1": "q"}, qrels, depth=5, first_negative=3)["1"]
    assert found.ids == ("d0", "d2", "d3", "d4")


def test_a_copy_of_a_positive_is_left_out_unless_it_is_judged(encoder):
    near = np.degrees(np.arccos(NEAR_POSITIVE)) - 0.5
    table = {"q": unit(0), "a": unit(10), "copy": unit(10 + near), "other": unit(10 - near - 1)}
    encoder = TableEncoder(table)
    embedded = Embedded.of(encoder, [Document(text, text) for text in table if text != "q"])
    found = mine_lists(encoder, embedded, {"1": "q"}, {"1": {"a": 1}})["1"]
    assert set(found.ids) == {"a", "other"}
    judged = mine_lists(encoder, embedded, {"1": "q"}, {"1": {"a": 1, "copy": 0}})["1"]
    assert set(judged.ids) == {"a", "other", "copy"}


def test_queries_without_a_relevant_document_make_no_list(encoder, embedded):
    queries = {"judged": "q", "none": "q", "elsewhere": "q", "unjudged": "q"}
    qrels = {"judged": {"d0": 1}, "none": {"d0": 0}, "elsewhere": {"not here": 1}}
    assert list(mine_lists(encoder, embedded, queries, qrels)) == ["judged"]


@pytest.mark.parametrize("count", [1, 7, 500])
def test_the_nearest_are_those_of_a_full_sort(count):
    draw = np.random.default_rng(0)
    queries, documents = (draw.normal(size=(n, 8)).astype(np.float32) for n in (300, 400))
    found = nearest(queries, documents, count)
    for vector, rows in zip(queries, found, strict=True):
        scores = documents @ vector
        assert len(set(rows)) == len(rows) == min(count, 400)
        np.testing.assert_allclose(scores[rows], np.sort(scores)[::-1][:count], atol=1e-5)
