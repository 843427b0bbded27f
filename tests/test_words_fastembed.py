"""Sparse vectors against those of fastembed's `Qdrant/bm25`; `make test-fastembed`.

fastembed needs an older huggingface-hub than our other dependencies, so it lives in an environment
of its own; where it is not installed this is skipped. Its stop words come from files that are
written here, so that nothing is downloaded.
"""

from __future__ import annotations

import random

import pytest

from e2rank_rag.words import STOP_WORD_LISTS, Bm25, stop_words_of

bm25 = pytest.importorskip("fastembed.sparse.bm25")

VOCABULARY = {
    "english": "the falls of older adults don't running ran universities generously U.S. e-mail",
    "german": "die Häuser und der Fluß Straßenbahnen gelaufen Äpfel größere Kindergärten daß",
    "french": "les chevaux de la forêt l'été aujourd'hui mangeaient généralement cœur à où",
}
ANYWHERE = (
    "3.5 1,000 snake_case _ __ a_ CO2 x² ﬁne naïve İstanbul 东京 日本語 C++ #tag @name … “q” 🙂",
    f"{'a' * 40} {'b' * 41} tab\tnew\nline no\u00a0break soft\u00adhyphen zero\u200bwidth",
)
TEXTS_PER_LANGUAGE = 334


def texts_of(language):
    rng = random.Random(language)
    words = [*VOCABULARY[language].split(" "), *" ".join(ANYWHERE).split(" ")]
    words += sorted(stop_words_of(language))[::5]
    texts = [" ".join(rng.choices(words, k=rng.randint(1, 60))) for _ in range(TEXTS_PER_LANGUAGE)]
    return ["", " ", "the", *texts, *(text.upper() for text in texts[:20])]


@pytest.fixture
def folder(tmp_path):
    for language in STOP_WORD_LISTS:
        words = "\n".join(stop_words_of(language))
        (tmp_path / f"{language}.txt").write_text(words, encoding="utf-8")
    return tmp_path


def as_weights(vector):
    return dict(zip(map(int, vector.indices), map(float, vector.values), strict=True))


@pytest.mark.parametrize("language", VOCABULARY)
@pytest.mark.parametrize(
    "settings", [{}, {"k1": 0.9, "b": 0.4, "average_words": 30.0}], ids=["default", "own"]
)
def test_ids_and_weights_are_fastembeds(folder, language, settings):
    names = {"k1": "k", "average_words": "avg_len"}
    theirs = bm25.Bm25(
        "Qdrant/bm25",
        language=language,
        specific_model_path=str(folder),
        **{names.get(name, name): value for name, value in settings.items()},
    )
    ours = Bm25(language=language, **settings)
    texts = texts_of(language)
    for text, mine, other in zip(texts, ours.documents(texts), theirs.embed(texts), strict=True):
        assert as_weights(mine) == pytest.approx(as_weights(other), rel=1e-6), text
    for text, other in zip(texts, theirs.query_embed(texts), strict=True):
        assert as_weights(ours.query(text)) == as_weights(other), text


def test_without_a_language_words_are_fastembeds_without_a_stemmer(folder):
    theirs = bm25.Bm25("Qdrant/bm25", specific_model_path=str(folder), disable_stemmer=True)
    texts = texts_of("english")
    for mine, other in zip(Bm25(language=None).documents(texts), theirs.embed(texts), strict=True):
        assert as_weights(mine) == pytest.approx(as_weights(other), rel=1e-6)
