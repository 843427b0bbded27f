"""Whether a sparse vector holds BM25, and of which language: texts are turned into words again."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, isclose

from e2rank_rag.check.outline import Outline
from e2rank_rag.check.probe import NEARLY_ALL
from e2rank_rag.check.sample import StoredText
from e2rank_rag.check.variants import Variant
from e2rank_rag.store.schema import BM25_KEY
from e2rank_rag.store.sparse import SparseWords
from e2rank_rag.words import STOP_WORD_LISTS, Bm25, SparseVector

TOLERANCE = 1e-3
"""Relative difference of two weights that were rounded to other dtypes."""

LEAST_WORDS = 3
"""Texts with fewer words could be alike by chance."""


def found_words(
    outline: Outline, texts: Sequence[StoredText], variant: Variant
) -> SparseWords | None:
    """The sparse vector that holds BM25 of these texts; None without one, or where a record says
    it."""
    if BM25_KEY in outline.record:
        return None
    for name, idf in outline.sparse.items():
        having = [text for text in texts if name in text.sparse]
        for language in ("english", *(each for each in STOP_WORD_LISTS if each != "english")):
            bm25 = Bm25(language=language)
            if having and any(_holds(bm25, name, having, each) for each in _ways(variant)):
                return SparseWords(bm25, name, idf)
    return None


def _ways(variant: Variant) -> list[Variant]:
    """The text as it was embedded, and the content alone."""
    return list(dict.fromkeys((variant, Variant(tokens=variant.tokens))))


def _holds(bm25: Bm25, name: str, texts: Sequence[StoredText], variant: Variant) -> bool:
    first, *others = texts
    # A wrong language is wrong for the first text: the others need not be read.
    if not _same(bm25, name, first, variant):
        return False
    same = 1 + sum(_same(bm25, name, text, variant) for text in others)
    return same >= ceil(NEARLY_ALL * len(texts))


def _same(bm25: Bm25, name: str, text: StoredText, variant: Variant) -> bool:
    (ours,) = bm25.documents([variant.text(text.content, text.fields)])
    stored = text.sparse[name]
    theirs = SparseVector(list(stored.indices), list(stored.values))
    if len(ours.indices) < LEAST_WORDS or set(ours.indices) != set(theirs.indices):
        return False
    weights = dict(zip(*theirs, strict=True))
    return all(
        isclose(weights[id], value, rel_tol=TOLERANCE) for id, value in zip(*ours, strict=True)
    )
