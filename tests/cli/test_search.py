"""`e2rank search` on a few documents: what it prints and how it fails."""

from __future__ import annotations

import json
import shlex

import numpy as np
import pytest

from e2rank_rag.cli import options as shared
from e2rank_rag.errors import StoreError
from e2rank_rag.indexing import index_documents
from e2rank_rag.models.encoder import Encoder
from e2rank_rag.pipeline import SearchPipeline
from e2rank_rag.rerankers import ListwiseReranker, load_reranker
from e2rank_rag.store import QdrantStore
from e2rank_rag.types import Document
from e2rank_rag.words import Bm25
from tests.cli.parts import IDS, TEXTS, found, one_line
from tests.cross_encoders import write_bert_cross_encoder
from tests.kit import ids, scores


def test_search_shows_a_table(run, filled, tiny_bert):
    code, out, _ = run("search", "animals [that] purr", "--index", filled, "--model", tiny_bert)
    assert code == 0
    assert "animals [that] purr" in out
    assert all(id in out for id in IDS)


def test_search_gives_json(run, filled, tiny_bert):
    options = ["--index", filled, "--model", tiny_bert, "--json", "--top-k", 3]
    code, out, _ = run("search", "animals that purr", *options)
    assert code == 0
    records = json.loads(out)
    assert len(records) == 3
    scores = [record["score"] for record in records]
    assert scores == sorted(scores, reverse=True)
    for record in records:
        assert list(record) == ["id", "score", "text", "meta"]
        assert record["text"] == TEXTS[IDS.index(record["id"])]
    assert all(type(score) is float for score in scores)


def test_search_explains_scores_in_a_table_and_in_json(run, filled, tiny_bert):
    options = ["animals that purr", "--index", filled, "--model", tiny_bert]
    code, out, _ = run("search", *options, "--explain")
    assert code == 0
    assert all(word in out for word in ("prompt", "average of all candidates", "itself 1.00", *IDS))
    code, out, _ = run("search", *options, "--explain", "--json")
    records = json.loads(out)
    assert [record["explanation"]["rank"] for record in records] == [1, 2, 3, 4]
    for record in records:
        parts = record.pop("explanation")["parts"]
        assert sum(parts.values()) == pytest.approx(record["score"], abs=1e-6)
    assert json.loads(run("search", *options, "--json")[1]) == records
    code, _, err = run("search", *options, "--explain", "--no-rerank")
    assert code == 2
    assert "--explain needs reranking" in err


def test_without_model_an_index_of_a_model_that_ships_is_searched_with_it(run, corpus, tmp_path):
    index = tmp_path / "index"
    assert run("index", corpus, "--index", index, "--model", "minilm")[0] == 0
    code, out, _ = run("search", "animals that purr", "--index", index, "--json")
    assert (code, found(out)[0]) == (0, "cats")


@pytest.mark.parametrize(
    "recorded", ["someone/model", "./cats", "/tmp/cats", "../e2rank-minilm", "MINILM", "a 'b'; c"]
)
def test_search_without_model_opens_only_what_is_known_to_be_harmless(
    run, tmp_path, monkeypatch, recorded
):
    def opened(*arguments, **options):
        raise AssertionError(f"a model was opened: {arguments}")

    monkeypatch.setattr(Encoder, "from_pretrained", opened)
    monkeypatch.setattr(shared, "system_of", opened)
    store = QdrantStore.open(tmp_path / "index", "documents")
    store.prepare(4, fingerprint="f", model=recorded)
    store.close()
    command = ["search", "q", "--index", tmp_path / "index"]
    for options in ([], ["--no-rerank"], ["--expand"]):
        code, _, err = run(*command, *options)
        assert code == 1
        assert one_line(err)
        assert "says that" in err
        added = shlex.split(err.split("if you trust it, add: ")[1])
        assert added == ["--model", recorded]


@pytest.mark.parametrize("location", ["HTTP://localhost:1", "https://localhost:1"])
@pytest.mark.parametrize("command", ["search", "index", "evaluate"])
def test_the_api_key_is_never_dropped(run, corpus, beir, tiny_bert, monkeypatch, location, command):
    keys = []

    def opened(location, collection, *, api_key, **_):
        keys.append(api_key)
        raise StoreError("enough")

    monkeypatch.setattr(QdrantStore, "open", opened)
    source = {"search": "q", "index": corpus, "evaluate": beir}[command]
    options = ["--index", location, "--model", tiny_bert]
    run(command, source, *options, "--api-key", "secret")
    monkeypatch.setenv("QDRANT_API_KEY", "from outside")
    run(command, source, *options)
    run(command, source, "--index", "./folder", "--model", tiny_bert)
    assert keys == ["secret", "from outside"] + [None] * (command != "search")


@pytest.mark.parametrize("command", ["search", "index"])
@pytest.mark.parametrize("location", ["htp://host", "http:/host", "https:host", "localhost:6333/"])
def test_an_address_with_a_wrong_scheme_is_no_folder(
    run, corpus, tmp_path, tiny_bert, monkeypatch, command, location
):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    code, _, err = run(command, corpus, "--index", location, "--model", tiny_bert)
    assert code == 1
    assert "a URL that begins with http:// or https://" in err
    assert sorted(tmp_path.iterdir()) == before


def test_an_api_key_for_a_folder_is_an_error(run, filled, tiny_bert):
    options = ["--index", filled, "--model", tiny_bert]
    code, _, err = run("search", "q", *options, "--api-key", "secret")
    assert code == 1
    assert "api_key is for servers" in err


def test_no_rerank_is_the_querys_own_cosine(run, filled, bert, tiny_bert):
    query = "animals that purr"
    _, out, _ = run(
        "search", query, "--index", filled, "--model", tiny_bert, "--json", "--no-rerank"
    )
    cosines = bert.encode_documents(TEXTS) @ bert.encode_queries([query])[0]
    by_hand = [IDS[i] for i in np.argsort(-cosines)]
    assert found(out) == by_hand
    scores = [record["score"] for record in json.loads(out)]
    assert scores == pytest.approx(sorted(cosines.tolist(), reverse=True), abs=1e-5)


def test_rerank_is_the_listwise_cosine(run, filled, bert, tiny_bert):
    query = "animals that purr"
    documents = bert.encode_documents(TEXTS)
    first = np.argsort(-(documents @ bert.encode_queries([query])[0]))
    better = bert.encode_listwise([query], [[TEXTS[i] for i in first]]).embeddings[0]
    by_hand = [IDS[i] for i in np.argsort(-(documents @ better))]
    for options in ([], ["--expand"]):
        _, out, _ = run(
            "search", query, "--index", filled, "--model", tiny_bert, "--json", *options
        )
        assert found(out) == by_hand


def test_expand_searches_again(run, filled, tiny_bert):
    options = [
        "--index",
        filled,
        "--model",
        tiny_bert,
        "--json",
        "--top-k",
        "2",
        "--retrieve-k",
        "2",
    ]
    _, out, _ = run("search", "animals that purr", *options, "--expand")
    assert len(found(out)) == 2


@pytest.mark.parametrize(
    ("filters", "ids"),
    [
        (["kind=pet"], ["cats", "dogs"]),
        (["kind=pet", "kind=food"], ["bread", "cats", "dogs"]),
        (["year>=2005"], ["dogs", "ferry"]),
        (["year>2001", "year<2010"], ["dogs"]),
        (["year=2001"], ["cats"]),
        (['year="2001"'], []),
        (["kind=pet", "year<2005"], ["cats"]),
        (["title=Ferries"], ["ferry"]),
    ],
)
def test_filters_limit_what_is_found(run, filled, filters, ids, tiny_bert):
    options = [part for condition in filters for part in ("--filter", condition)]
    code, out, _ = run(
        "search", "q", "--index", filled, "--model", tiny_bert, "--json", "--no-rerank", *options
    )
    assert (code, sorted(found(out))) == (0, ids)


def ranked_by(folder, reranker, query):
    """What the library finds, with the index's own model."""
    with load_reranker(reranker) as core:
        store = QdrantStore.open(folder, "documents")
        with Encoder.from_pretrained(store.model) as encoder:
            hits = SearchPipeline(encoder, store, core).search(query)
        store.close()
    return [hit.document.id for hit in hits], [hit.score for hit in hits]


def test_a_resrank_indexes_searches_and_reranks(run, corpus, tmp_path, tiny_resrank, tiny_bert):
    index = tmp_path / "index"
    assert run("index", corpus, "--index", index, "--model", tiny_resrank)[0] == 0
    query = "animals that purr"
    expected = ranked_by(index, tiny_resrank, query)
    for options in (["--model", tiny_resrank], ["--model", tiny_bert, "--reranker", tiny_resrank]):
        _, out, _ = run("search", query, "--index", index, "--json", *options)
        assert found(out) == expected[0]
        given = [record["score"] for record in json.loads(out)]
        assert given == pytest.approx(expected[1], abs=1e-5)


def test_another_model_reranks_what_was_found(run, filled, tmp_path, tiny_rankt5, tiny_bert):
    query = "animals that purr"
    search = ["search", query, "--index", filled, "--model", tiny_bert, "--json", "--reranker"]
    _, out, _ = run(*search, tiny_rankt5)
    assert found(out) == ranked_by(filled, tiny_rankt5, query)[0]
    cross = write_bert_cross_encoder(tmp_path / "cross")
    for system in ([], ["--system", "rankt5"]):
        code, out, _ = run(*search, cross, *system)
        assert code == 0
        assert found(out) == ranked_by(filled, cross, query)[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--expand"], "(rankt5) has none"),
        (["--no-rerank"], "--reranker needs reranking; leave out --no-rerank"),
        (["--system", "bm25"], "--system takes one of e2rank, resrank, rankt5, got 'bm25'"),
    ],
)
def test_search_refuses_what_a_reranker_cannot_do(
    run, filled, tiny_rankt5, options, message, tiny_bert
):
    code, _, err = run(
        "search", "q", "--index", filled, "--model", tiny_bert, "--reranker", tiny_rankt5, *options
    )
    assert code == 2
    assert message in " ".join(err.replace("│", " ").split())
    code, _, err = run("search", "q", "--index", filled, "--model", tiny_bert, "--system", "rankt5")
    assert code == 2
    assert "--system describes a --reranker" in err


@pytest.fixture(scope="module")
def worded(tmp_path_factory, bert):
    """An index of the four documents with their words."""
    folder = tmp_path_factory.mktemp("worded")
    store = QdrantStore.open(folder, "documents", bm25=Bm25())
    corpus = [Document(id, text) for id, text in zip(IDS, TEXTS, strict=True)]
    index_documents(corpus, bert, store)
    store.close()
    return folder


@pytest.mark.parametrize(
    ("options", "hybrid"), [([], True), (["--hybrid"], True), (["--no-hybrid"], False)]
)
def test_hybrid_is_the_pipelines_and_the_default_where_there_are_words(
    run, worded, bert, tiny_bert, options, hybrid
):
    query = "yeast in bread"
    store = QdrantStore.open(worded, "documents")
    reranked = SearchPipeline(bert, store, ListwiseReranker(bert))
    settings = {"top_k": 2, "retrieve_k": 2, "hybrid": hybrid}
    expected = {
        "--no-rerank": SearchPipeline(bert, store).search(query, **settings),
        "--json": reranked.search(query, **settings),
        "--expand": reranked.search(query, expand=True, **settings),
    }
    store.close()
    command = ["search", query, "--index", worded, "--model", tiny_bert, "--top-k", 2]
    for option, hits in expected.items():
        code, out, _ = run(*command, "--retrieve-k", 2, "--json", option, *options)
        assert code == 0
        records = json.loads(out)
        assert [record["id"] for record in records] == ids(hits)
        given = [record["score"] for record in records]
        assert given == pytest.approx(scores(hits), abs=1e-5)
        assert all(list(record) == ["id", "score", "text", "meta"] for record in records)


def test_hybrid_without_words_in_the_index_is_an_error(run, filled, tiny_bert):
    command = ["search", "q", "--index", filled, "--model", tiny_bert, "--json"]
    code, _, err = run(*command, "--hybrid")
    assert code == 1
    assert one_line(err)
    assert "holds no words: leave --hybrid out, or add them with `e2rank index" in err
    assert run(*command)[1] == run(*command, "--no-hybrid")[1]
