"""Words of a list count as plain loops count them; the score is the cosine plus their evidence."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from pydantic import ValidationError

from e2rank_rag.evidence import CandidateWords, Evidence, joined, standardised
from e2rank_rag.words import LANGUAGES, STOP_WORD_LISTS, Bm25

BM25 = Bm25()
BM25_WITHOUT_LENGTHS = Bm25(k1=0.5, b=0.0)
WORDS = [
    *("ferry", "river", "bridge", "stone", "bread", "yeast", "salt", "tram", "island", "cat"),
    *("dog", "purr", "bark", "library", "book", "open", "cross", "water", "rain", "snow"),
]


def random_texts(count, seed=0, longest=30):
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(0, longest))) for _ in range(count)]


def idf(word, lists):
    holding = sum(word in tokens for tokens in lists)
    return math.log((len(lists) - holding + 0.5) / (holding + 0.5) + 1)


def weighted_bm25(weights, lists):
    """BM25 word by word; weights: of the words that are looked for."""
    scores = [0.0] * len(lists)
    for word, weight in weights.items():
        rare = idf(word, lists)
        for place, tokens in enumerate(lists):
            count = tokens.count(word)
            norm = 1.2 * (1 - 0.75 + 0.75 * len(tokens) / 256)
            scores[place] += weight * rare * count * (1.2 + 1) / (count + norm)
    return scores


def rm3_weights(asked, lists, evidence, documents, terms):
    """RM3's words, as it is written: shares of the best documents, times idf, cut."""
    best = sorted(range(len(lists)), key=lambda place: -evidence[place])[:documents]
    total = sum(math.exp(evidence[place]) for place in best)
    values = {}
    for place in sorted(best):
        for word in dict.fromkeys(lists[place]):
            part = math.exp(evidence[place]) / total * lists[place].count(word) / len(lists[place])
            values[word] = values.get(word, 0.0) + part
    # Words of equal value are taken in the order of the list.
    first = list(dict.fromkeys(word for tokens in lists for word in tokens))
    values = {
        word: values[word] * idf(word, lists)
        for word in first
        if word in values and word not in asked and sum(word in each for each in lists) > 1
    }
    chosen = sorted(values, key=lambda word: -values[word])[:terms]
    return {word: values[word] / values[chosen[0]] for word in chosen}


def test_scores_are_bm25_of_the_querys_different_words_over_this_list():
    texts = ["cats purr", "dogs bark at cats, cats!", "a ferry crosses the water"]
    found = CandidateWords.of("Cats, ferries; cats?", texts, BM25_WITHOUT_LENGTHS).scores()
    cat, ferry = math.log(1.5 / 2.5 + 1), math.log(2.5 / 1.5 + 1)
    np.testing.assert_allclose(found, [cat, cat * 2 * 1.5 / 2.5, ferry], rtol=1e-6)
    assert found.dtype == np.float32


@pytest.mark.parametrize("count", [1, 7, 100, 1000])
def test_scores_and_expansion_equal_plain_loops(count):
    texts = random_texts(count)
    query = "which ferry crosses the river at the stone bridge"
    evidence = np.random.default_rng(count).normal(size=count).astype(np.float32)
    lists, asked = [BM25.tokens(text) for text in texts], BM25.tokens(query)
    words = CandidateWords.of(query, texts, BM25)
    np.testing.assert_allclose(
        words.scores(), weighted_bm25(dict.fromkeys(asked, 1.0), lists), rtol=1e-5, atol=1e-6
    )
    for documents, terms in ((8, 50), (3, 4), (1, 1)):
        weights = rm3_weights(asked, lists, evidence, documents, terms)
        np.testing.assert_allclose(
            words.expansion(evidence, documents=documents, terms=terms),
            weighted_bm25(weights, lists),
            rtol=1e-5,
            atol=1e-6,
        )


def test_expansion_by_hand():
    """One best document: its words, without the query's, weigh count / length * idf."""
    texts = ["ferry tram tram", "tram bridge", "ferry", "snow"]
    evidence = np.array([9.0, 0.0, 0.0, 0.0], np.float32)
    words = CandidateWords.of("ferry", texts, BM25_WITHOUT_LENGTHS)
    found = words.expansion(evidence, documents=1, terms=5)
    tram = math.log(2.5 / 2.5 + 1)  # the only word, so its weight is 1
    np.testing.assert_allclose(found, [tram * 2 * 1.5 / 2.5, tram, 0.0, 0.0], rtol=1e-6)


def test_words_of_equal_value_are_taken_in_the_order_of_the_list():
    texts = ["snow rain", "rain", "snow"]
    evidence = np.array([5.0, 0.0, 0.0], np.float32)
    (first, second) = (
        CandidateWords.of("bridge", each, BM25).expansion(evidence, documents=1, terms=1)
        for each in (texts, ["rain snow", *texts[1:]])
    )
    np.testing.assert_array_equal(first > 0.0, [True, False, True])
    np.testing.assert_array_equal(second > 0.0, [True, True, False])


def test_words_of_one_candidate_alone_do_not_count():
    evidence = np.array([5.0, 4.0], np.float32)
    words = CandidateWords.of("bridge", ["snow rain", "tram ferry"], BM25)
    np.testing.assert_array_equal(words.expansion(evidence), np.zeros(2))


@pytest.mark.parametrize(
    ("query", "texts"),
    [
        ("zebra", ["cats purr", "dogs bark"]),
        ("the", ["cats purr", "the dogs"]),
        ("", ["cats purr", "dogs bark"]),
        ("cats", ["the", "of"]),
        ("cats", ["!?", ""]),
        ("cats", ["", ""]),
        ("", ["", ""]),
    ],
)
def test_without_a_common_word_all_scores_are_zero(query, texts):
    words = CandidateWords.of(query, texts, BM25)
    np.testing.assert_array_equal(words.scores(), np.zeros(2))


@pytest.mark.parametrize("texts", [["猫が好きです。", "犬が好きです!", "鳥が飛ぶ"], ["", "", ""]])
def test_texts_without_common_words_keep_the_cosines(texts):
    cosines = np.array([0.2, 0.5, 0.3], np.float32)
    words = CandidateWords.of("猫", texts, BM25)
    added = Evidence().added(words, standardised(cosines))
    np.testing.assert_array_equal(joined(cosines, added), cosines)


def test_what_is_added_is_the_weighted_sum_of_the_standardised_scores():
    texts = random_texts(20)
    evidence = np.linspace(1.0, -1.0, 20, dtype=np.float32)
    words = CandidateWords.of("ferry on the river", texts, BM25)
    settings = Evidence(words=0.4, expansion=0.1, expansion_documents=3, expansion_terms=5)

    def deviations(values):
        return (values - values.mean()) / values.std()

    expected = 0.4 * deviations(words.scores()) + 0.1 * deviations(
        words.expansion(evidence, documents=3, terms=5)
    )
    np.testing.assert_allclose(settings.added(words, evidence), expected, rtol=1e-4, atol=1e-6)
    nothing = Evidence(words=0.0, expansion=0.0).added(words, evidence)
    np.testing.assert_array_equal(nothing, np.zeros(20))


def test_the_score_is_the_cosine_plus_deviations():
    cosines = np.array([0.2, 0.4, 0.6, 0.8], np.float32)
    added = np.array([1.0, 0.0, -1.0, 0.5], np.float32)
    deviation = math.sqrt((0.3**2 + 0.1**2) / 2)
    scores = joined(cosines, added)
    np.testing.assert_allclose(scores, cosines + deviation * added, rtol=1e-6)
    order = np.argsort(-(standardised(cosines) + added))
    np.testing.assert_array_equal(np.argsort(-scores), order)


def test_one_candidate_keeps_its_cosine():
    words = CandidateWords.of("cats", ["cats purr"], BM25)
    cosine = np.array([0.5], np.float32)
    np.testing.assert_array_equal(joined(cosine, Evidence().added(words, cosine)), cosine)


def test_equal_texts_have_equal_scores_anywhere_in_the_list():
    texts = [*random_texts(30), "the ferry crosses the river", *random_texts(9, seed=1)]
    texts.append(texts[30])
    evidence = np.random.default_rng(0).normal(size=len(texts)).astype(np.float32)
    added = Evidence().added(CandidateWords.of("ferry", texts, BM25), evidence)
    assert added[30] == added[-1]


@pytest.mark.parametrize("values", [[0.5, 0.5, 0.5], [1e-9, 0.0, 0.0], [3.0]])
def test_equal_values_are_all_zero_when_standardised(values):
    np.testing.assert_allclose(standardised(np.array(values)), np.zeros(len(values)), atol=1e-8)


@pytest.mark.parametrize(
    "setting",
    [
        {"words": -0.1},
        {"expansion": float("nan")},
        {"expansion_documents": 0},
        {"expansion_terms": 0},
        {"language": "klingon"},
        {"weight": 1.0},
    ],
)
def test_settings_out_of_range_are_refused(setting):
    with pytest.raises(ValidationError):
        Evidence(**setting)


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_language_with_a_stemmer_will_do(language):
    evidence = Evidence(language=language)
    assert evidence.bm25.language == language
    assert (evidence.bm25.stop_words == ()) == (language not in STOP_WORD_LISTS)


def test_without_a_language_words_are_as_they_are():
    assert Evidence(language=None).bm25.tokens("The Cats") == ["the", "cats"]
    assert Evidence(language="german").bm25.tokens("die Katzen") == ["katz"]
