"""Words: stems, and the sparse vectors of BM25."""

from __future__ import annotations

import pickle
from collections import Counter

import mmh3
import pytest
from pydantic import ValidationError

from e2rank_rag import words
from e2rank_rag.words import LANGUAGES, STOP_WORD_LISTS, Bm25


def test_tokens_are_stems_in_lower_case_without_stop_words() -> None:
    assert Bm25().tokens("The FALLS of older adults, don't: 3.5") == [
        "fall",
        "older",
        "adult",
        "3",
        "5",
    ]


def test_a_word_of_more_than_40_characters_is_left_out() -> None:
    assert Bm25(language=None).tokens(f"{'a' * 40} {'b' * 41}") == ["a" * 40]


def test_an_underscore_alone_is_no_word() -> None:
    assert Bm25().tokens("snake_case _ __") == ["snake_cas", "__"]


def test_without_a_language_words_stay_as_they_are() -> None:
    assert Bm25(language=None).tokens("The falls") == ["the", "falls"]


def test_other_languages_have_their_own_stems_and_stop_words() -> None:
    assert Bm25(language="german").tokens("Die Häuser und der Fluß") == ["haus", "fluss"]
    assert Bm25(language="french").tokens("les chevaux de la forêt") == ["cheval", "forêt"]


def test_given_stop_words_replace_those_of_the_language() -> None:
    assert Bm25(stop_words=("Falls",)).tokens("the falls") == ["the"]


@pytest.mark.parametrize("language", sorted(LANGUAGES))
def test_every_language_has_stop_words_or_asks_for_them(language: str) -> None:
    if language in STOP_WORD_LISTS:
        assert Bm25(language=language).tokens("zebra")
    else:
        with pytest.raises(ValidationError, match="stop_words"):
            Bm25(language=language)
        assert Bm25(language=language, stop_words=()).tokens("zebra")


def test_an_unknown_language_is_refused_with_those_that_exist() -> None:
    with pytest.raises(ValidationError, match=r"english.*'klingon'"):
        Bm25(language="klingon")


def test_weights_are_the_formula_of_bm25_without_the_idf() -> None:
    text = "falls fall rain " + "word " * 7
    (vector,) = Bm25(k1=1.5, b=0.5, average_words=20).documents([text])
    counts = Counter(fall=2, rain=1, word=7)
    norm = 1.5 * (1 - 0.5 + 0.5 * 10 / 20)
    expected = {
        abs(mmh3.hash(stem)): count * 2.5 / (count + norm) for stem, count in counts.items()
    }
    assert dict(zip(vector.indices, vector.values, strict=True)) == pytest.approx(expected)


def test_a_query_holds_each_stem_once_with_weight_1() -> None:
    vector = Bm25().query("rain, rains and falls")
    assert vector.indices == [abs(mmh3.hash("rain")), abs(mmh3.hash("fall"))]
    assert vector.values == [1.0, 1.0]


def test_a_text_without_words_has_an_empty_vector() -> None:
    assert Bm25().documents(["", "the of", "?!"]) == [([], [])] * 3
    assert Bm25().query("the") == ([], [])


def test_memory_for_stems_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "KEPT_STEMS", 10)
    bm25 = Bm25(language=None, stop_words=("a",))
    assert len(bm25.tokens(" ".join(f"w{number}" for number in range(95)))) == 95
    assert len(words._stems(None, ("a",))) <= 10


def test_it_can_be_pickled_and_compared() -> None:
    bm25 = Bm25(language="german", k1=1.0)
    bm25.tokens("Häuser")
    assert pickle.loads(pickle.dumps(bm25)) == bm25 != Bm25()


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["北海道の冬は長い。", "English"], True),
        (["ฤดูหนาวในภาคเหนือ"], True),
        (["冬天", "A long winter in the north."], False),
        (["북쪽의 겨울은 길다."], False),
        (["", "..."], False),
        ([], False),
    ],
)
def test_text_without_spaces_between_words_is_known_by_its_letters(texts, expected) -> None:
    assert words.mostly_unspaced(texts) is expected
