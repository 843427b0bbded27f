"""Words: texts as stems, and as sparse vectors for BM25 in a Qdrant collection.

    bm25 = Bm25(language="english")
    bm25.tokens("The falls of older adults")   # ["fall", "older", "adult"]

Stems, ids and weights are those of fastembed's model `Qdrant/bm25`, so a collection that other
tools filled with it can be searched, and they can search ours.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, Self, TypeVar

import mmh3
from py_rust_stemmers import SnowballStemmer
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

LANGUAGES = (
    "arabic",
    "danish",
    "dutch",
    "english",
    "finnish",
    "french",
    "german",
    "greek",
    "hungarian",
    "italian",
    "norwegian",
    "portuguese",
    "romanian",
    "russian",
    "spanish",
    "swedish",
    "tamil",
    "turkish",
)
"""Languages with a Snowball stemmer."""

STOP_WORD_LISTS = {
    "danish": "STOPWORDS_DANISH",
    "dutch": "STOPWORDS_DUTCH",
    "english": "STOPWORDS_EN_PLUS",
    "french": "STOPWORDS_FRENCH",
    "german": "STOPWORDS_GERMAN",
    "italian": "STOPWORDS_ITALIAN",
    "norwegian": "STOPWORDS_NORWEGIAN",
    "portuguese": "STOPWORDS_PORTUGUESE",
    "russian": "STOPWORDS_RUSSIAN",
    "spanish": "STOPWORDS_SPANISH",
    "swedish": "STOPWORDS_SWEDISH",
    "turkish": "STOPWORDS_TURKISH",
}
"""The name of bm25s's list of stop words, for each language that has one. Most lists are NLTK's, as
those of `Qdrant/bm25` are; the Danish, Norwegian and Turkish lists differ."""

LONGEST_WORD = 40
KEPT_STEMS = 200_000
"""How many words keep their stem in memory, for each language."""

KEPT_TEXTS = 10_000
LONGEST_KEPT = 10_000
"""How many texts keep their counted words in memory, and how long they may be in characters."""

SAMPLED_CHARACTERS = 300

N = TypeVar("N", bound=Any)

_WORD = re.compile(r"\w+")
# Thai, Lao, Burmese, Khmer, Japanese and Chinese. Korean has spaces.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf"
    "\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff]+"
)


class SparseVector(NamedTuple):
    """Ids of stems, and a weight for each."""

    indices: list[int]
    values: list[float]


class Counted(NamedTuple):
    """The different stems of a text in the order of their first use, how often each is used, and
    the length of the text in words."""

    stems: tuple[str, ...]
    counts: tuple[int, ...]
    length: int


class Bm25(BaseModel):
    """BM25 (Robertson and Zaragoza 2009) as sparse vectors: the formula without the idf.

    Qdrant multiplies by the idf of the collection (the sparse vector's modifier "idf").

    language: one of `LANGUAGES`, which decides the stemmer and the stop words. None: words as they
        are, without stemming and stop words.
    stop_words: these in place of the language's; needed for a language that has none in
        `STOP_WORD_LISTS`, () for none.
    k1: saturation of a word's count, 0 or more. b: how much the length of a document counts, 0 to
        1. average_words: the average length of a document in words, without stop words.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    language: str | None = "english"
    stop_words: tuple[str, ...] | None = None
    k1: float = Field(default=1.2, ge=0.0)
    b: float = Field(default=0.75, ge=0.0, le=1.0)
    average_words: float = Field(default=256.0, gt=0.0)

    @classmethod
    def of(cls, language: str | None) -> Self:
        """For texts in this language; where it has no list of stop words, all words count."""
        return cls(language=language, stop_words=None if language in STOP_WORD_LISTS else ())

    @field_validator("stop_words")
    @classmethod
    def _lower_case(cls, words: tuple[str, ...] | None) -> tuple[str, ...] | None:
        return None if words is None else tuple(sorted({word.lower() for word in words}))

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.language is None:
            return self
        if self.language not in LANGUAGES:
            raise ValueError(
                f"language must be one of {', '.join(LANGUAGES)}, got {self.language!r}; None "
                "takes words as they are"
            )
        if self.stop_words is None and self.language not in STOP_WORD_LISTS:
            raise ValueError(
                f"there is no list of stop words for {self.language!r}: give stop_words, () for "
                "none"
            )
        return self

    def tokens(self, text: str) -> list[str]:
        """The stems of a text's words, in their order, without stop words.

        A word is a run of letters, digits and underscores in lower case, of up to 40 characters. So
        text without spaces between words, such as Chinese, has few and long words.
        """
        return _tokens(self.language, self.stop_words, text)

    def counted(self, text: str) -> Counted:
        """The words of a text, counted; those of recent texts are remembered."""
        count = _recently_counted if len(text) <= LONGEST_KEPT else _counted
        return count(self.language, self.stop_words, text)

    def documents(self, texts: Sequence[str]) -> list[SparseVector]:
        """The sparse vector of each text; empty for a text without words."""
        return [self._document(text) for text in texts]

    def query(self, text: str) -> SparseVector:
        """The sparse vector of a query: each stem once, with weight 1."""
        ids = list(dict.fromkeys(map(_id, self.tokens(text))))
        return SparseVector(ids, [1.0] * len(ids))

    def weight(self, count: N, length: Any) -> N:
        """What a word's count in a document of `length` words weighs: numbers, or arrays alike."""
        norm = self.k1 * (1 - self.b + self.b * length / self.average_words)
        weight: N = count * (self.k1 + 1) / (count + norm)
        return weight

    def _document(self, text: str) -> SparseVector:
        stems, counts, length = _counted(self.language, self.stop_words, text)
        weights = {
            _id(stem): self.weight(count, length) for stem, count in zip(stems, counts, strict=True)
        }
        return SparseVector(list(weights), list(weights.values()))


def mostly_unspaced(texts: Sequence[str]) -> bool:
    """Whether most letters are of scripts without spaces between words, such as Chinese.

    Reads the first `SAMPLED_CHARACTERS` characters of each text.
    """
    sample = " ".join(text[:SAMPLED_CHARACTERS] for text in texts)
    unspaced, letters = (sum(map(len, each.findall(sample))) for each in (_UNSPACED, _WORD))
    return 2 * unspaced > letters


class _Stems(dict[str, str]):
    """The stem of each word that was met; "" for a word that is left out."""

    def __init__(self, stem: Callable[[str], str], left_out: frozenset[str]) -> None:
        super().__init__()
        self._stem = stem
        self._left_out = left_out

    def __missing__(self, word: str) -> str:
        if len(self) >= KEPT_STEMS:
            self.clear()
        # An underscore alone is punctuation to `Qdrant/bm25`.
        dropped = word in self._left_out or len(word) > LONGEST_WORD or word == "_"
        stem = self[word] = "" if dropped else self._stem(word)
        return stem


def stop_words_of(language: str) -> tuple[str, ...]:
    """bm25s's stop words; KeyError for a language that is not in `STOP_WORD_LISTS`."""
    with warnings.catch_warnings():
        # bm25s imports tqdm, which warns in a notebook without ipywidgets.
        warnings.filterwarnings("ignore", message="IProgress not found")
        # Not at the top: it takes a third of a second, and building a pipeline needs no words.
        from bm25s import stopwords
    return tuple(getattr(stopwords, STOP_WORD_LISTS[language]))


@lru_cache(maxsize=32)
def _stems(language: str | None, stop_words: tuple[str, ...] | None) -> _Stems:
    if stop_words is None:
        stop_words = () if language is None else stop_words_of(language)
    stem = str if language is None else SnowballStemmer(language).stem_word
    return _Stems(stem, frozenset(stop_words))


def _tokens(language: str | None, stop_words: tuple[str, ...] | None, text: str) -> list[str]:
    stems = _stems(language, stop_words)
    return [stem for word in _WORD.findall(text.lower()) if (stem := stems[word])]


def _counted(language: str | None, stop_words: tuple[str, ...] | None, text: str) -> Counted:
    counts = Counter(_tokens(language, stop_words, text))
    return Counted(tuple(counts), tuple(counts.values()), counts.total())


_recently_counted = lru_cache(maxsize=KEPT_TEXTS)(_counted)


@lru_cache(maxsize=KEPT_STEMS)
def _id(stem: str) -> int:
    return abs(mmh3.hash(stem))
