"""A sparse vector that holds BM25 is recognised, with its language."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from qdrant_client import models

from e2rank_rag.check.outline import DenseVector, Outline
from e2rank_rag.check.sample import StoredText
from e2rank_rag.check.variants import Variant
from e2rank_rag.check.words import found_words
from e2rank_rag.words import Bm25
from tests.checking import DOCUMENTS

VECTOR = DenseVector(None, 2, models.Distance.COSINE, several=False)


def outline(**options):
    return Outline("c", 8, (VECTOR,), **{"sparse": {"text-sparse": True}, **options})


def texts(bm25, text=lambda document: document.text):
    vectors = bm25.documents([text(document) for document in DOCUMENTS])
    return [
        StoredText(
            d.id,
            d.text,
            {"title": d.meta["title"]},
            None,
            1.0,
            {"text-sparse": SimpleNamespace(indices=v.indices, values=v.values)},
        )
        for d, v in zip(DOCUMENTS, vectors, strict=True)
    ]


@pytest.mark.parametrize("language", ["english", "german"])
def test_the_language_of_bm25_is_found(language):
    bm25 = Bm25(language=language)
    found = found_words(outline(), texts(bm25), Variant(tokens=64))
    assert (found.bm25, found.vector_name, found.idf) == (bm25, "text-sparse", True)


def test_words_of_the_text_with_its_title_are_found():
    variant = Variant(tokens=64, fields=("title",), separator=" ")
    titled = texts(Bm25(), lambda d: f"{d.meta['title']} {d.text}")
    assert found_words(outline(), titled, variant) is not None
    assert found_words(outline(), texts(Bm25()), variant) is not None
    assert found_words(outline(), titled, Variant(tokens=64)) is None


def test_other_sparse_vectors_are_not_taken_for_bm25():
    learned = texts(Bm25(k1=0.5))
    assert found_words(outline(), learned, Variant(tokens=64)) is None
    assert found_words(outline(sparse={}), learned, Variant(tokens=64)) is None


def test_a_recorded_sparse_vector_needs_no_guess():
    recorded = outline(record={"bm25": {}, "bm25_name": "text-sparse"})
    assert found_words(recorded, texts(Bm25()), Variant(tokens=64)) is None
