"""One contract for ListwiseReranker and RocchioReranker, and what is special about each."""

from __future__ import annotations

import asyncio
import copy
from dataclasses import replace

import numpy as np
import pytest

from e2rank_rag.errors import StoredVectorMismatch
from e2rank_rag.models.cross_encoder import CrossEncoder
from e2rank_rag.rerankers import (
    CrossEncoderReranker,
    ListwiseReranker,
    RocchioReranker,
    Window,
    rank,
    score_by_vector,
)
from e2rank_rag.types import Document, Hit
from e2rank_rag.vectors import VectorCounts
from tests.cross_encoders import write_bert_cross_encoder
from tests.encoders import CountingEncoder, another_model
from tests.kit import ids, same

QUERY = "Which animals purr, and which ones bark?"
OTHER_QUERY = "When does the ferry cross the strait?"
TEXTS = [
    "cats purr, cats sleep, cats purr again",
    "dogs bark, dogs dig, dogs bark again",
    "A ferry crosses the strait between the two islands four times a day.",
    "The oldest bridge over the river carries trams, bicycles and people on foot.",
    "Bread rises because yeast turns sugar into carbon dioxide; salt slows it down.",
    "A prime number has no divisors but one and itself: 2, 3, 5, 7, 11 and so on.",
    "Glaciers move downhill under their own weight, a few metres a year.",
    "To reset the router, hold the button for ten seconds, then wait.",
]


def cosine(a, b):
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


@pytest.fixture(params=["bert", "qwen3"])
def encoder(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def candidates(encoder):
    """As a store gives them: retrieval scores, and vectors of the same encoder."""
    return [
        Hit(Document(f"d{i}", text), 1.0 - i / 10, vector)
        for i, (text, vector) in enumerate(zip(TEXTS, encoder.encode_documents(TEXTS), strict=True))
    ]


@pytest.fixture(params=[ListwiseReranker, RocchioReranker])
def kind(request):
    return request.param


@pytest.fixture
def reranker(kind, encoder):
    return kind(encoder)


def expected_vector(reranker, hits, query=QUERY):
    """The better query vector, from the encoder's own parts."""
    if isinstance(reranker, ListwiseReranker):
        texts = [hit.document.text for hit in hits]
        return reranker.encoder.encode_listwise([query], [texts]).embeddings[0]
    vectors = reranker.encoder.encode_documents([hit.document.text for hit in hits[:3]])
    return reranker.encoder.encode_queries([query])[0] + 0.4 * vectors.mean(axis=0)


# The contract


def test_every_candidate_comes_back_exactly_once(reranker, candidates):
    ranking = reranker.rerank(QUERY, candidates)
    assert sorted(ids(ranking)) == sorted(ids(candidates))
    assert {hit.document.id: hit.document for hit in ranking} == {
        hit.document.id: hit.document for hit in candidates
    }


def test_scores_are_cosines_with_the_better_query_vector(reranker, candidates):
    better = expected_vector(reranker, candidates)
    by_hand = {hit.document.id: cosine(better, hit.embedding) for hit in candidates}
    ranking = reranker.rerank(QUERY, candidates)
    assert {hit.document.id: hit.score for hit in ranking} == pytest.approx(by_hand, abs=1e-5)
    assert ids(ranking) == sorted(by_hand, key=by_hand.get, reverse=True)


def test_scores_are_python_floats_in_falling_order(reranker, candidates):
    scores = [hit.score for hit in reranker.rerank(QUERY, candidates)]
    assert all(type(score) is float for score in scores)
    assert scores == sorted(scores, reverse=True)


def test_no_candidates_give_no_ranking_and_cost_nothing(kind, encoder):
    counting = CountingEncoder(encoder)
    assert kind(counting).rerank(QUERY, []) == []
    assert kind(counting).rerank_batch([], []) == []
    assert (counting.documents, counting.queries, counting.prompts) == ([], [], [])


def test_a_single_candidate_is_scored(reranker, candidates):
    (hit,) = reranker.rerank(QUERY, candidates[:1])
    better = expected_vector(reranker, candidates[:1])
    assert hit.score == pytest.approx(cosine(better, candidates[0].embedding), abs=1e-5)


def test_a_batch_equals_one_by_one(reranker, candidates):
    lists = [candidates, [], candidates[:1], candidates[::-1]]
    queries = [QUERY, QUERY, OTHER_QUERY, OTHER_QUERY]
    batch = reranker.rerank_batch(queries, lists)
    single = [reranker.rerank(q, hits) for q, hits in zip(queries, lists, strict=True)]
    for one, other in zip(batch, single, strict=True):
        assert same(one, other)


def test_as_many_queries_as_lists_are_needed(reranker, candidates):
    with pytest.raises(ValueError, match="2 queries came with 1 candidate lists"):
        reranker.rerank_batch([QUERY, QUERY], [candidates])


def test_ties_keep_their_order(reranker, candidates):
    twins = [replace(candidates[0], document=Document(id, TEXTS[0])) for id in "bca"]
    ranking = reranker.rerank(QUERY, [*candidates[1:3], *twins, *candidates[3:]])
    assert [id for id in ids(ranking) if id in "abc"] == ["b", "c", "a"]
    assert len({hit.score for hit in ranking if hit.document.id in "abc"}) == 1


@pytest.mark.parametrize("copies", [5, 13, 101])
@pytest.mark.parametrize("dim", [32, 384])
def test_equal_vectors_have_equal_scores_wherever_they_stand(copies, dim):
    row, vector = np.random.default_rng(0).normal(size=(2, dim)).astype(np.float32)
    hits = [Hit(Document(str(i), "the same text"), 0.0, row.copy()) for i in range(copies)]
    ranking = score_by_vector(hits, vector)
    assert ids(ranking) == ids(hits)
    assert len({hit.score for hit in ranking}) == 1


def test_inputs_are_unchanged(reranker, candidates):
    lists = [candidates, [replace(hit, embedding=None) for hit in candidates]]
    before = copy.deepcopy(lists)
    reranker.rerank_batch([QUERY, OTHER_QUERY], lists)
    for hits, old in zip(lists, before, strict=True):
        assert hits == old  # document and score, and the order
        for hit, was in zip(hits, old, strict=True):
            np.testing.assert_array_equal(hit.embedding, was.embedding)


def test_stored_and_fresh_embeddings_give_the_same_ranking(reranker, candidates):
    bare = [replace(hit, embedding=None) for hit in candidates]
    mixed = [hit if i % 2 else bare[i] for i, hit in enumerate(candidates)]
    stored, fresh, half = reranker.rerank_batch([QUERY] * 3, [candidates, bare, mixed])
    assert same(fresh, stored)
    assert same(half, stored)
    assert all(hit.embedding is not None for hit in fresh)


async def test_async_twins_give_the_same_answer(reranker, candidates):
    assert same(await reranker.arerank(QUERY, candidates), reranker.rerank(QUERY, candidates))
    lists = [candidates, [], candidates[2:]]
    queries = [QUERY, QUERY, OTHER_QUERY]
    batch = await reranker.arerank_batch(queries, lists)
    for one, other in zip(batch, reranker.rerank_batch(queries, lists), strict=True):
        assert same(one, other)


async def test_the_event_loop_ticks_while_reranking(kind, encoder, candidates):
    slow = kind(CountingEncoder(encoder, pause_s=0.1))
    ticks = 0
    task = asyncio.create_task(slow.arerank(QUERY, candidates))
    while not task.done():
        await asyncio.sleep(0.01)
        ticks += 1
    assert ticks >= 5
    assert sorted(ids(task.result())) == sorted(ids(candidates))


# Stored vectors


@pytest.mark.parametrize(("source", "probed"), [("a store", 2), ("", 3)])
def test_of_stored_candidates_only_those_of_the_probe_are_encoded(
    kind, encoder, candidates, source, probed
):
    counting = CountingEncoder(encoder)
    reranker = kind(counting)
    candidates = [replace(hit, source=source) for hit in candidates]
    reranker.rerank(QUERY, candidates)
    assert len(counting.documents) == probed
    if source:
        reranker.rerank(OTHER_QUERY, candidates)
        assert len(counting.documents) == probed


def test_vectors_of_another_model_of_the_same_length_are_refused(kind, encoder, candidates):
    other = CountingEncoder(encoder, turn=another_model(encoder.dim))
    found = [replace(hit, source="collection 'news' in memory") for hit in candidates]
    with pytest.raises(StoredVectorMismatch) as caught:
        kind(other).rerank(QUERY, found)
    assert other.name in str(caught.value)
    assert "collection 'news' in memory" in str(caught.value)
    assert 'stored_vectors="ignore"' in str(caught.value)


def test_ignored_vectors_are_made_anew(kind, encoder, candidates):
    counting = CountingEncoder(encoder, turn=another_model(encoder.dim))
    ranking = kind(counting, stored_vectors="ignore").rerank(QUERY, candidates)
    assert sorted(counting.documents) == sorted(TEXTS)
    # A turn leaves all cosines as they are, so the ranking is the other model's own.
    assert ids(ranking) == ids(kind(encoder).rerank(QUERY, candidates))


def test_trusted_vectors_are_used_unseen(kind, encoder, candidates):
    counting = CountingEncoder(encoder)
    ranking = kind(counting, stored_vectors="trust").rerank(QUERY, candidates)
    assert counting.documents == []
    assert ids(ranking) == ids(kind(encoder).rerank(QUERY, candidates))


def test_the_report_says_what_was_reused_and_encoded(reranker, candidates):
    lists = [candidates[:4], [replace(hit, embedding=None) for hit in candidates[4:]], []]
    report = reranker.rerank_batch([QUERY] * 3, lists).report
    assert (report.vectors.reused, report.vectors.encoded) == (4, 4)


# rank


def test_rank_sorts_and_keeps_ties():
    hits = [Hit(Document(id, id), 0.0) for id in "abcd"]
    ranking = rank(hits, [0.5, 2, 0.5, -1])
    assert [(h.document.id, h.score) for h in ranking] == [
        ("b", 2.0),
        ("a", 0.5),
        ("c", 0.5),
        ("d", -1.0),
    ]
    assert all(hit.score == 0.0 for hit in hits)


def test_rank_keeps_the_score_before_the_first_reranking():
    hits = [Hit(Document("a", "a"), 0.7), Hit(Document("b", "b"), 0.6)]
    twice = rank(rank(hits, [1, 2]), [3, 4])
    assert [(h.score, h.retrieval_score) for h in twice] == [(4.0, 0.7), (3.0, 0.6)]
    assert all(hit.retrieval_score is None for hit in hits)


def test_rank_of_nothing_is_nothing():
    assert rank([], []) == []


def test_rank_refuses_nan_and_names_the_document():
    hits = [Hit(Document(id, id), 0.0) for id in "abc"]
    with pytest.raises(ValueError, match="document 'b' is NaN"):
        rank(hits, np.array([1.0, np.nan, np.nan]))


def test_rank_takes_infinities():
    hits = [Hit(Document(id, id), 0.0) for id in "abc"]
    assert ids(rank(hits, [-np.inf, 0.0, np.inf])) == ["c", "b", "a"]


@pytest.mark.parametrize("scores", [[], [1.0], [1.0, 2.0, 3.0], [[1.0, 2.0]]])
def test_rank_needs_one_score_for_each(scores):
    with pytest.raises(ValueError, match="2 candidates came with scores of shape"):
        rank([Hit(Document(id, id), 0.0) for id in "ab"], scores)


def test_a_candidate_without_embedding_cannot_be_scored():
    with pytest.raises(ValueError, match="document 'a' came without an embedding"):
        score_by_vector([Hit(Document("a", "a"), 0.0)], np.ones(2, np.float32))


# Listwise


def test_the_prompt_holds_the_first_candidates_and_all_are_scored(encoder, candidates):
    counting = CountingEncoder(encoder)
    reranker = ListwiseReranker(counting, prompt_depth=2)
    reranking = reranker.rerank_batch([QUERY], [candidates])
    (ranking,), (usage,) = reranking, reranking.report.prompts
    assert usage.documents == 2
    better, _ = encoder.encode_listwise([QUERY], [TEXTS[:2]])
    for hit in ranking:
        assert hit.score == pytest.approx(cosine(better[0], hit.embedding), abs=1e-5)
    assert len(ranking) == len(TEXTS)


def test_the_report_says_how_long_the_prompt_was(qwen3, candidates):
    hits = [Hit(Document("a", "cats"), 0.0), Hit(Document("b", "dogs"), 0.0)]
    reranking = ListwiseReranker(qwen3).rerank_batch([QUERY, QUERY], [hits, hits[:1]])
    both, one = reranking.report.prompts
    assert (both.documents, one.documents) == (2, 1)
    assert both.tokens > one.tokens > len(QUERY.split())
    assert not both.query_cut
    assert both.documents_cut == 0


def test_query_weight_one_is_the_plain_querys_ranking(encoder, candidates):
    query = encoder.encode_queries([QUERY])[0]
    ranking = ListwiseReranker(encoder, query_weight=1.0).rerank(QUERY, candidates)
    plain = score_by_vector(candidates, query)
    assert same(ranking, plain)


def test_query_weight_blends_the_two_vectors(encoder, candidates):
    query = encoder.encode_queries([QUERY])[0]
    listwise = encoder.encode_listwise([QUERY], [TEXTS], query_weight=0.0).embeddings[0]
    ranking = ListwiseReranker(encoder, query_weight=0.25).rerank(QUERY, candidates)
    for hit in ranking:
        by_hand = cosine(0.25 * query + 0.75 * listwise, hit.embedding)
        assert hit.score == pytest.approx(by_hand, abs=1e-5)


def test_two_passes_equal_running_twice(encoder, candidates):
    once = ListwiseReranker(encoder, prompt_depth=3)
    by_hand = once.rerank(QUERY, once.rerank(QUERY, candidates))
    twice = ListwiseReranker(encoder, prompt_depth=3, passes=2).rerank_batch([QUERY], [candidates])
    assert same(twice[0], by_hand)
    assert len(twice.report.prompts) == 2
    assert twice.report.vectors.reused == len(TEXTS)


@pytest.mark.parametrize(
    ("count", "starts"),
    [
        (100, [80, 70, 60, 50, 40, 30, 20, 10, 0]),
        (25, [5, 0]),
        (21, [1, 0]),
        (20, [0]),
        (3, [0]),
        (0, [0]),
    ],
)
def test_windows_go_from_the_last_candidates_to_the_first(count, starts):
    assert Window(size=20, step=10).starts(count) == starts


@pytest.mark.parametrize("count", [1, 4, 5, 7, 23])
@pytest.mark.parametrize(("size", "step"), [(1, 1), (4, 1), (4, 3), (5, 5)])
def test_windows_cover_every_candidate_once_at_least(count, size, step):
    places = {p for start in Window(size, step).starts(count) for p in range(start, start + size)}
    assert set(range(count)) <= places


@pytest.mark.parametrize(("size", "step"), [(4, 0), (4, 5), (0, 0), (3, -1)])
def test_a_window_that_skips_candidates_is_refused(size, step):
    with pytest.raises(ValueError, match=f"got step {step} and size {size}"):
        Window(size, step)


def slide_by_hand(encoder, query, candidates, size, step):
    """The loop of the released evaluation, one query at a time."""
    order = list(candidates)
    start = max(0, len(order) - size)
    while True:
        part = order[start : start + size]
        texts = [hit.document.text for hit in part]
        vector = encoder.encode_listwise([query], [texts]).embeddings[0]
        scores = [cosine(vector, hit.embedding) for hit in part]
        by_score = sorted(range(len(part)), key=lambda i: -scores[i])
        order[start : start + size] = [replace(part[i], score=scores[i]) for i in by_score]
        if start == 0:
            return order
        start = max(0, start - step)


def test_the_sliding_window_equals_a_loop_by_hand(encoder, candidates):
    lists = [candidates, candidates[:3], [], candidates[::-1][:5]]
    queries = [QUERY, OTHER_QUERY, QUERY, OTHER_QUERY]
    reranker = ListwiseReranker(encoder, window=Window(size=4, step=2))
    rankings = reranker.rerank_batch(queries, lists)
    assert rankings.vectors is None
    for query, hits, ranking in zip(queries, lists, rankings, strict=True):
        by_hand = slide_by_hand(encoder, query, hits, 4, 2) if hits else []
        assert ids(ranking) == ids(by_hand)
        # Each prompt has its own scale: down the list no score may rise.
        lowered = np.minimum.accumulate([hit.score for hit in by_hand]) if by_hand else []
        assert [hit.score for hit in ranking] == pytest.approx(list(lowered), abs=1e-5)
    # 8 candidates: from 4, 2 and 0; 3: from 0; 5: from 1 and 0.
    assert len(rankings.report.prompts) == 3 + 1 + 2


@pytest.mark.parametrize("passes", [1, 2])
def test_sliding_scores_never_rise_and_every_candidate_stays(encoder, candidates, passes):
    reranker = ListwiseReranker(encoder, window=Window(size=3, step=1), passes=passes)
    ranking = reranker.rerank(QUERY, candidates)
    scores = [hit.score for hit in ranking]
    assert scores == sorted(scores, reverse=True)
    assert sorted(ids(ranking)) == sorted(ids(candidates))


def test_a_window_as_long_as_the_list_is_one_prompt(encoder, candidates):
    wide = ListwiseReranker(encoder, window=Window(size=8, step=4)).rerank(QUERY, candidates)
    assert same(wide, ListwiseReranker(encoder).rerank(QUERY, candidates))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"passes": 0}, "passes must be 1 or more, got 0"),
        ({"prompt_depth": -1}, "got -1"),
        ({"query_weight": 1.5}, "got 1.5"),
        ({"stored_vectors": "verify"}, "'check', 'trust', 'ignore'.*'verify'"),
    ],
)
def test_options_that_make_no_sense_are_refused(bert, option, message):
    with pytest.raises(ValueError, match=message):
        ListwiseReranker(bert, **option)


# A score per pair


@pytest.fixture(scope="module")
def pair_ranker(tmp_path_factory):
    folder = write_bert_cross_encoder(tmp_path_factory.mktemp("tiny-cross"))
    with CrossEncoder.from_pretrained(folder) as ranker:
        yield ranker


@pytest.fixture
def hits():
    return [
        Hit(Document(str(i), text), 1.0 - i / 10, np.eye(8, dtype=np.float32)[i], source="store")
        for i, text in enumerate(TEXTS)
    ]


def test_a_cross_encoder_orders_by_the_score_of_each_pair_and_reads_no_vectors(pair_ranker, hits):
    queries = [QUERY, "", OTHER_QUERY]  # the empty one has no candidates, and so is not asked
    rankings = CrossEncoderReranker(pair_ranker).rerank_batch(queries, [hits, [], hits[:3][::-1]])
    assert ids(rankings[1]) == []
    for query, ranking, given in ((QUERY, rankings[0], hits), (OTHER_QUERY, rankings[2], hits[:3])):
        texts = [hit.document.text for hit in given]
        (scores,), _ = pair_ranker.score([query], [texts])
        expected = {hit.document.id: score for hit, score in zip(given, scores, strict=True)}
        assert sorted(ids(ranking)) == sorted(expected)
        assert [hit.score for hit in ranking] == pytest.approx(
            sorted(expected.values(), reverse=True), abs=1e-5
        )
        for hit in ranking:
            original = hits[int(hit.document.id)]
            assert hit.score == pytest.approx(expected[hit.document.id], abs=1e-5)
            assert hit.embedding is original.embedding
            assert (hit.source, hit.retrieval_score) == ("store", original.score)
    assert rankings.vectors is None
    assert rankings.report.vectors == VectorCounts(0, 0)
    assert [used.documents for used in rankings.report.prompts] == [8, 3]


async def test_a_cross_encoder_gives_the_same_ranking_to_one_many_and_async_callers(
    pair_ranker, hits
):
    reranker = CrossEncoderReranker(pair_ranker)
    (ranking,) = reranker.rerank_batch([QUERY], [hits])
    assert same(reranker.rerank(QUERY, hits), ranking)
    assert same(await reranker.arerank(QUERY, hits), ranking)
    assert same(reranker.rerank(QUERY, hits[::-1]), ranking)
    with pytest.raises(ValueError, match="1 queries came with 2 candidate lists"):
        reranker.rerank_batch([QUERY], [hits, hits])
