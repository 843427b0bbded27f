"""Each system is what its parts make by hand, measured over all judged queries."""

from __future__ import annotations

import numpy as np
import pytest

from e2rank_rag.evaluation.differences import Differences
from e2rank_rag.evaluation.systems import METHODS, Comparison, candidates_of_run, run_system
from e2rank_rag.evidence import CandidateWords, Evidence
from e2rank_rag.feedback import Feedback
from e2rank_rag.indexing import index_documents
from e2rank_rag.models.e2rank import Backbone
from e2rank_rag.models.e2rank_folder import save_adapter
from e2rank_rag.models.encoder import Encoder
from e2rank_rag.pipeline import SearchPipeline
from e2rank_rag.rerankers import (
    EvidenceReranker,
    ListwiseReranker,
    RocchioReranker,
    load_reranker,
)
from e2rank_rag.store import LANGCHAIN_LAYOUT, QdrantStore
from e2rank_rag.types import Document
from e2rank_rag.words import Bm25
from tests.encoders import CountingEncoder, TableEncoder
from tests.kit import adapted, ids

TEXTS = {
    "cats": "cats purr, cats sleep, cats purr again",
    "dogs": "dogs bark, dogs dig, dogs bark again",
    "ferry": "A ferry crosses the strait between the two islands four times a day.",
    "bread": "Bread rises because yeast turns sugar into carbon dioxide.",
    "prime": "A prime number has no divisors but one and itself.",
}
QUERIES = {"q1": "Which animals purr?", "q2": "When does the ferry cross?"}
QRELS = {"q1": {"cats": 1}, "q2": {"ferry": 1}}


SYSTEMS = ("retrieve", "rocchio", "listwise")
"""Methods that any encoder and any store will do for."""

WORDS = ("bm25", "hybrid")


RECIPE = {"feedback": Feedback(weight=0.7), "query_weight": 0.3, "evidence": Evidence()}


def rankings(result):
    return {query: ids(hits) for query, hits in result.rankings.items()}


@pytest.fixture
def store(bert):
    store = QdrantStore.open(":memory:", "things")
    store.prepare(bert.dim, fingerprint=bert.fingerprint)
    documents = [Document(id, text) for id, text in TEXTS.items()]
    store.upsert(documents, bert.encode_documents(list(TEXTS.values())))
    yield store
    store.close()


@pytest.fixture
def words(bert):
    store = QdrantStore.open(":memory:", "words", bm25=Bm25())
    index_documents([Document(id, text) for id, text in TEXTS.items()], bert, store)
    yield store
    store.close()


@pytest.fixture(scope="module")
def with_feedback(bert):
    """The same model with feedback in its recipe."""
    recipe = bert.recipe.model_copy(update=RECIPE)
    with bert.with_recipe(recipe) as encoder:
        yield encoder


@pytest.fixture(scope="module")
def with_adapter(with_feedback, tmp_path_factory):
    """The same model with a listwise adapter that does something."""
    folder = tmp_path_factory.mktemp("adapter") / "model"
    model = adapted(with_feedback.weights_folder, seed=3)
    base, recipe = with_feedback.name, with_feedback.recipe
    with Encoder.from_pretrained(
        save_adapter(folder, model, recipe, base=base, digest=with_feedback.digest)
    ) as encoder:
        yield encoder


def test_the_methods_are_named():
    assert list(METHODS) == [
        "retrieve",
        "bm25",
        "hybrid",
        "rocchio",
        "feedback",
        "prompt",
        "listwise",
        "evidence",
        "rerank",
    ]


@pytest.mark.parametrize(
    ("system", "kind"),
    [("retrieve", None), ("rocchio", RocchioReranker), ("listwise", ListwiseReranker)],
)
def test_a_system_is_search_and_its_reranker(bert, store, system, kind):
    result = run_system(system, bert, store, QUERIES, QRELS)
    for query, text in QUERIES.items():
        found = store.search(bert.encode_queries([text])[0], top_k=100)
        by_hand = found if kind is None else kind(bert).rerank(text, found)
        assert ids(result.rankings[query]) == ids(by_hand)


# Words


def test_bm25_is_the_stores_search_by_words(bert, words):
    result = run_system("bm25", bert, words, QUERIES, QRELS)
    found = words.search_words_batch(list(QUERIES.values()), top_k=100)
    assert rankings(result) == dict(zip(QUERIES, map(ids, found), strict=True))
    # Only the cats purr, and only one document has a ferry that crosses.
    assert rankings(result) == {"q1": ["cats"], "q2": ["ferry"]}
    assert result.measures == {"nDCG@10": 1.0, "R@100": 1.0, "RR@10": 1.0}


def test_hybrid_is_the_pipelines_hybrid_search(bert, words):
    result = run_system("hybrid", bert, words, QUERIES, QRELS)
    by_hand = SearchPipeline(bert, words).search_batch(
        list(QUERIES.values()), top_k=100, hybrid=True
    )
    assert rankings(result) == dict(zip(QUERIES, map(ids, by_hand), strict=True))


def test_retrieve_stays_by_vectors_where_there_are_words(bert, words, store):
    expected = rankings(run_system("retrieve", bert, store, QUERIES, QRELS))
    assert rankings(run_system("retrieve", bert, words, QUERIES, QRELS)) == expected


@pytest.mark.parametrize("system", ["rocchio", "listwise", "evidence"])
@pytest.mark.parametrize("hybrid", [None, True, False])
def test_candidates_are_hybrid_where_there_are_words_unless_told(system, hybrid):
    # Two documents lie near the query, and the third one holds its word.
    texts = {"near": [1, 0], "nearby": [1, 0.1], "zebra herd": [0, 1]}
    table = TableEncoder({"zebra": [1, 0], "listwise zebra": [1, 0], **texts})
    store = QdrantStore.open(":memory:", "things", bm25=Bm25())
    index_documents([Document(text, text) for text in texts], table, store)
    result = run_system(
        system, table, store, {"q": "zebra"}, QRELS, hybrid=hybrid, retrieve_k=2, measures=["AP"]
    )
    other = "nearby" if hybrid is False else "zebra herd"
    assert set(rankings(result)["q"]) == {"near", other}
    store.close()


@pytest.mark.parametrize("system", WORDS)
def test_a_store_without_words_is_refused_before_anything_is_searched(bert, store, system):
    counting = CountingEncoder(bert)
    with pytest.raises(ValueError, match=rf"'{system}' searches words, and .*things.* has none: "):
        run_system(system, counting, store, QUERIES, QRELS)
    with pytest.raises(ValueError, match="hybrid=True searches words"):
        run_system("listwise", counting, store, QUERIES, QRELS, hybrid=True)
    assert counting.queries == []


@pytest.mark.parametrize("system", WORDS)
def test_given_candidates_are_not_searched_by_words(bert, words, system):
    with pytest.raises(ValueError, match="with given candidates nothing is searched"):
        run_system(system, bert, words, QUERIES, QRELS, candidates={"q1": ["cats"]})


# The parts of a model


def test_feedback_is_the_models_own_without_its_prompt(with_feedback, store):
    counting = CountingEncoder(with_feedback)
    result = run_system("feedback", counting, store, QUERIES, QRELS)
    feedback = with_feedback.feedback
    for query, text in QUERIES.items():
        asked = with_feedback.encode_queries([text])[0]
        found = store.search(asked, top_k=100)
        vectors = np.stack([hit.embedding for hit in found])
        words = CandidateWords.of(text, [hit.document.text for hit in found], Bm25())
        evidence = feedback.evidence(words, vectors @ asked)
        moved = asked + 0.7 * feedback.mean(vectors, evidence)
        best = np.argsort(-(vectors @ moved), kind="stable")
        assert rankings(result)[query] == [found[place].document.id for place in best]
    # No prompt is read with the whole weight on the query.
    assert [prompt["query_weight"] for prompt in counting.prompts] == [1.0, 1.0]


def test_evidence_is_any_encoders_without_a_prompt(bert, store):
    counting = CountingEncoder(bert)
    result = run_system("evidence", counting, store, QUERIES, QRELS)
    for query, text in QUERIES.items():
        found = store.search(bert.encode_queries([text])[0], top_k=100)
        assert rankings(result)[query] == ids(EvidenceReranker(bert).rerank(text, found))
    assert counting.prompts == []


def test_prompt_is_the_model_without_its_adapter(with_adapter, with_feedback, store):
    listwise = run_system("listwise", with_adapter, store, QUERIES, QRELS)
    prompt = run_system("prompt", with_adapter, store, QUERIES, QRELS)
    untrained = run_system("listwise", with_feedback, store, QUERIES, QRELS)

    def scores(result):
        return [hit.score for hits in result.rankings.values() for hit in hits]

    assert scores(prompt) == pytest.approx(scores(untrained), abs=1e-6)
    assert np.abs(np.subtract(scores(prompt), scores(listwise))).max() > 1e-3
    # The model itself is open, and has its adapter still.
    assert run_system("listwise", with_adapter, store, QUERIES, QRELS).rankings == listwise.rankings


def test_parts_that_a_model_lacks_are_refused(bert, with_feedback, store):
    for encoder in (with_feedback, CountingEncoder(with_feedback)):
        with pytest.raises(ValueError, match="its own prompt is the method 'listwise'"):
            run_system("prompt", encoder, store, QUERIES, QRELS)
    with pytest.raises(ValueError, match="this model has none in its recipe"):
        run_system("feedback", bert, store, QUERIES, QRELS)


def test_check_refuses_what_run_refuses_and_encodes_nothing(bert, store):
    counting = CountingEncoder(bert)
    comparison = Comparison(counting, store, QUERIES, QRELS)
    for method in SYSTEMS:
        comparison.check(method)
    for method in ("bm25", "hybrid", "feedback", "prompt", "rerank", "nothing"):
        with pytest.raises(ValueError, match=f"{method!r}"):
            comparison.check(method)
    assert (counting.queries, counting.documents, counting.prompts) == ([], [], [])


def test_values_by_query_are_what_the_means_are_of(bert, store):
    results = {
        name: run_system(name, bert, store, QUERIES, QRELS, measures=["RR@10", "AP"])
        for name in SYSTEMS
    }
    for result in results.values():
        assert list(result.by_query) == list(QUERIES)
        for measure, value in result.measures.items():
            each = [values[measure] for values in result.by_query.values()]
            assert value == pytest.approx(sum(each) / 2)
    found = Differences.of({name: of.by_query for name, of in results.items()}, "retrieve")
    assert list(found.by_method) == ["rocchio", "listwise"]


def test_a_reranker_of_the_caller_is_a_system_too(bert, store, tiny_rankt5):
    measures = ["nDCG@5", "AP", "MRR@10"]
    with load_reranker(tiny_rankt5) as reranker:
        options = {"reranker": reranker, "measures": measures}
        result = run_system("rerank", bert, store, QUERIES, QRELS, **options)
        for query, text in QUERIES.items():
            found = store.search(bert.encode_queries([text])[0], top_k=100)
            assert ids(result.rankings[query]) == ids(reranker.rerank(text, found))
        with pytest.raises(ValueError, match="CrossEncoderReranker does not have"):
            run_system("rerank", bert, store, QUERIES, QRELS, expand=True, **options)
    assert list(result.measures) == measures
    with pytest.raises(ValueError, match="'rerank' runs a reranker"):
        run_system("rerank", bert, store, QUERIES, QRELS)


@pytest.mark.parametrize("system", SYSTEMS)
def test_measures_are_fractions_and_time_is_per_query(bert, store, system):
    result = run_system(system, bert, store, QUERIES, QRELS)
    assert list(result.measures) == ["nDCG@10", "R@100", "RR@10"]
    assert all(0.0 <= value <= 1.0 for value in result.measures.values())
    assert result.measures["R@100"] == 1.0
    assert 0 < result.seconds_per_query < 10


def test_measures_by_hand():
    # q lies on a, then b, then c: the one relevant document is at rank 2.
    table = TableEncoder({"q": [1, 0], "a": [1, 0], "b": [1, 1], "c": [0, 1]})
    store = QdrantStore.open(":memory:", "things")
    store.prepare(2, fingerprint="t")
    store.upsert([Document(id, id) for id in "abc"], table.encode_documents(list("abc")))
    result = run_system(
        "retrieve", table, store, {"1": "q", "2": "q"}, {"1": {"b": 1}, "2": {"gone": 1}}
    )
    assert ids(result.rankings["1"]) == ["a", "b", "c"]
    assert result.measures == {
        "nDCG@10": pytest.approx((1 / np.log2(3) + 0) / 2),
        "R@100": pytest.approx(0.5),
        "RR@10": pytest.approx((1 / 2 + 0) / 2),
    }
    store.close()


def test_with_candidates_retrieve_is_the_querys_cosine_on_them(bert, store):
    candidates = {"q1": ["bread", "cats", "dogs"], "q2": ["prime"]}
    result = run_system("retrieve", bert, store, QUERIES, QRELS, candidates=candidates)
    query = bert.encode_queries([QUERIES["q1"]])[0]
    vectors = bert.encode_documents([TEXTS[id] for id in candidates["q1"]])
    cosines = dict(zip(candidates["q1"], (vectors @ query).tolist(), strict=True))
    ranking = result.rankings["q1"]
    assert ids(ranking) == sorted(cosines, key=cosines.get, reverse=True)
    assert {h.document.id: h.score for h in ranking} == pytest.approx(cosines, abs=1e-5)
    assert ids(result.rankings["q2"]) == ["prime"]


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_query_without_candidates_counts_as_zero(bert, store, system):
    result = run_system(system, bert, store, QUERIES, QRELS, candidates={"q1": ["cats"]})
    assert result.rankings["q2"] == []
    assert result.measures == {"nDCG@10": 0.5, "R@100": 0.5, "RR@10": 0.5}


def test_retrieve_k_is_the_depth(bert, store):
    result = run_system("listwise", bert, store, QUERIES, QRELS, retrieve_k=2)
    assert [len(hits) for hits in result.rankings.values()] == [2, 2]


def test_expand_is_for_rerankers_only(bert, store):
    options = {"retrieve_k": 2, "expand": True}
    retrieve = run_system("retrieve", bert, store, QUERIES, QRELS, **options)
    plain = run_system("retrieve", bert, store, QUERIES, QRELS, retrieve_k=2)
    assert ids(retrieve.rankings["q1"]) == ids(plain.rankings["q1"])
    pipeline = SearchPipeline(bert, store, ListwiseReranker(bert))
    listwise = run_system("listwise", bert, store, QUERIES, QRELS, **options)
    for query, text in QUERIES.items():
        by_hand = pipeline.search(text, top_k=2, **options)
        assert ids(listwise.rankings[query]) == ids(by_hand)


def test_batches_do_not_matter(bert, store):
    whole = run_system("listwise", bert, store, QUERIES, QRELS)
    single = run_system("listwise", bert, store, QUERIES, QRELS, batch_queries=1)
    assert {q: ids(h) for q, h in whole.rankings.items()} == {
        q: ids(h) for q, h in single.rankings.items()
    }


def test_an_unknown_system_is_refused_with_those_there_are(bert, store):
    with pytest.raises(ValueError, match=r"'retrieve', 'bm25', .*'rerank'.*got 'rrf'"):
        run_system("rrf", bert, store, QUERIES, QRELS)


def test_candidates_of_a_run_are_its_best():
    run = {"q": {"a": 1.0, "b": 3.0, "c": 2.0}, "r": {}}
    assert candidates_of_run(run, depth=2) == {"q": ["b", "c"], "r": []}
    assert candidates_of_run({"q": {str(i): -i for i in range(200)}})["q"] == [
        str(i) for i in range(100)
    ]


# Where queries are documents

PAIR = {
    "argument": "Cats purr, and  dogs bark.\n",
    "answer": "Dogs bark, and cats only purr.",
    "same text": "Cats purr, and dogs bark.",
    "titled": "Ferries A ferry crosses the strait.",
    "same id": "Bread rises because yeast turns sugar into gas.",
    "judged": "A prime number has no divisors but one and itself.",
}
OF_THEM = {
    "argument": "Cats purr, and dogs bark.",
    "titled": "A ferry crosses the strait.",
    "same id": "When does the ferry cross?",
    "judged": PAIR["judged"],
    "other": "Which animals purr?",
}
OWN = {"argument", "titled"}


@pytest.fixture
def of_documents(bert):
    store = QdrantStore.open(":memory:", "things", bm25=Bm25())
    meta = {"titled": {"title": "Ferries"}}
    documents = [Document(id, text, meta.get(id, {})) for id, text in PAIR.items()]
    index_documents(documents, bert, store)
    yield store
    store.close()


@pytest.mark.parametrize("expand", [False, True])
@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("system", [*SYSTEMS, "hybrid", "evidence", "rerank"])
def test_the_query_itself_is_not_a_wrong_answer(
    bert, of_documents, tiny_rankt5, system, given, expand
):
    if expand and system == "rerank":
        pytest.skip("a RankT5 has no vector to search with")
    if given and system == "hybrid":
        pytest.skip("given candidates are not searched")
    counting = CountingEncoder(bert)
    qrels = {id: {"answer": 1} for id in OF_THEM} | {"judged": {"judged": 0, "answer": 1}}
    candidates = {id: list(PAIR)[::-1] for id in OF_THEM} if given else None
    with load_reranker(tiny_rankt5) as reranker:
        result = run_system(
            system,
            counting,
            of_documents,
            OF_THEM,
            qrels,
            reranker=reranker,
            candidates=candidates,
            retrieve_k=5,
            expand=expand and not given,
        )
    assert result.left_out == 2
    for query, hits in result.rankings.items():
        expected = set(PAIR) - ({query} & OWN)
        # Five of six are asked for, whether the query is one of them or not.
        assert len(hits) == 5
        assert set(ids(hits)) <= expected
        assert query not in OWN or set(ids(hits)) == expected


def test_the_query_itself_is_no_answer_by_words(bert, of_documents):
    qrels = {id: {"answer": 1} for id in OF_THEM} | {"judged": {"judged": 0, "answer": 1}}
    for depth in (1, 5):
        result = run_system("bm25", bert, of_documents, OF_THEM, qrels, retrieve_k=depth)
        assert result.left_out == 2
        # Both share words with the argument, which itself has all of them.
        assert set(ids(result.rankings["argument"])) <= {"same text", "answer"}
        assert len(result.rankings["argument"]) == min(depth, 2)
        assert ids(result.rankings["judged"]) == ["judged"]


@pytest.mark.parametrize("given", [False, True])
def test_the_query_itself_is_in_no_prompt(bert, of_documents, monkeypatch, given):
    read = []
    listwise = bert.encode_listwise

    def watch(queries, candidates, **options):
        read.extend(zip(queries, candidates, strict=True))
        return listwise(queries, candidates, **options)

    counting = CountingEncoder(bert)
    monkeypatch.setattr(counting, "encode_listwise", watch)
    candidates = {id: list(PAIR) for id in OF_THEM} if given else None
    qrels = {id: {"answer": 1} for id in OF_THEM}
    run_system("listwise", counting, of_documents, OF_THEM, qrels, candidates=candidates)
    texts = {query: PAIR[id] for id, query in OF_THEM.items() if id in OWN}
    assert len(read) == len(OF_THEM)
    assert [query for query, documents in read if texts.get(query) in documents] == []


def test_a_store_of_other_ids_holds_no_query(bert):
    store = QdrantStore.open(":memory:", "theirs", layout=LANGCHAIN_LAYOUT)
    store.prepare(bert.dim)
    store.upsert([Document("7", QUERIES["q1"])], bert.encode_documents([QUERIES["q1"]]))
    queries = {"q1": QUERIES["q1"], "7": QUERIES["q1"]}
    result = run_system("retrieve", bert, store, queries, {"q1": {"7": 1}, "7": {"8": 1}})
    assert {query: ids(hits) for query, hits in result.rankings.items()} == {"q1": ["7"], "7": []}
    store.close()


# Time


def test_each_batch_of_queries_has_its_time(bert, store):
    result = run_system("retrieve", bert, store, QUERIES, QRELS, batch_queries=1)
    assert len(result.batch_seconds) == len(QUERIES)
    assert result.seconds_per_query == pytest.approx(sum(result.batch_seconds) / len(QUERIES))
    together = run_system("retrieve", bert, store, QUERIES, QRELS)
    assert len(together.batch_seconds) == 1
    assert rankings(result) == rankings(together)
    with pytest.raises(ValueError, match="batch_queries must be 1 or more, got 0"):
        run_system("retrieve", bert, store, QUERIES, QRELS, batch_queries=0)


def test_every_method_encodes_the_queries_itself(bert, store, monkeypatch):
    passes, forward = [], Backbone.forward

    def counted(self, **batch):
        passes.append(len(batch["input_ids"]))
        return forward(self, **batch)

    monkeypatch.setattr(Backbone, "forward", counted)
    for _ in range(2):
        passes.clear()
        run_system("retrieve", bert, store, QUERIES, QRELS)
        assert sum(passes) == len(QUERIES)
