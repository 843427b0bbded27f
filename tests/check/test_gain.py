"""Methods are measured on the texts that were embedded, with words of the collection or added."""

from __future__ import annotations

import numpy as np
import pytest

from e2rank_rag.check import gain as gains
from e2rank_rag.check.examine import Asked, examine
from e2rank_rag.check.gain import measure, searchable
from e2rank_rag.check.opening import opened
from e2rank_rag.check.queries import Queries, made_up
from e2rank_rag.store import QdrantStore
from e2rank_rag.training.labels.chat import ChatTeacher
from e2rank_rag.words import Bm25
from tests.chat_server import ChatServer, said
from tests.checking import CONTENTS, DOCUMENTS, fill

QUERIES = Queries(
    {"q1": "which cats purr?", "q2": "when does the ferry cross?"},
    {"q1": {"d6": 1}, "q2": {"d0": 2}},
    "qrels",
)


@pytest.fixture(scope="module")
def titled(tmp_path_factory, bert):
    folder = tmp_path_factory.mktemp("titled")
    texts = [f"{d.meta['title']}\n{d.text}" for d in DOCUMENTS]
    fill(folder, bert.encode_documents(texts)).close()
    return folder


def with_store(folder, model, use, *, bm25=None):
    """What `use` makes of the store of the collection, and where its words are."""
    with opened(str(folder)) as connection:
        findings = examine(connection, Asked(str(folder), [str(model)]))
        points = findings.outline.points
        with searchable(connection, findings.place, findings.match, bm25, points) as (store, words):
            return use(store), words


def test_documents_have_the_text_that_was_embedded(titled, tiny_bert):
    found, words = with_store(titled, tiny_bert, lambda store: store.get(["d1"])["d1"].document)
    assert (found.text, words) == (f"Old bridges\n{CONTENTS[1]}", "none")


def test_a_copy_in_memory_has_words_and_the_same_vectors(titled, tiny_bert):
    def read(store):
        return store.hybrid, store.get([d.id for d in DOCUMENTS], with_embeddings=True)

    (hybrid, copied), words = with_store(titled, tiny_bert, read, bm25=Bm25())
    (_, stored), _ = with_store(titled, tiny_bert, read)
    assert (hybrid, words) == (True, "copy")
    assert {id: each.document for id, each in copied.items()} == {
        id: each.document for id, each in stored.items()
    }
    for id, each in stored.items():
        np.testing.assert_allclose(copied[id].embedding, each.embedding, atol=1e-6)


def test_a_large_collection_is_not_copied(titled, tiny_bert, monkeypatch):
    monkeypatch.setattr(gains, "MOST_COPIED", 7)
    assert with_store(titled, tiny_bert, lambda store: store.hybrid, bm25=Bm25()) == (False, "none")


def test_recorded_words_are_used_where_they_are(tmp_path, bert, tiny_bert):
    store = QdrantStore.open(tmp_path, "notes", bm25=Bm25())
    store.prepare(bert.dim, fingerprint=bert.fingerprint, model=str(tiny_bert))
    store.upsert(DOCUMENTS, bert.encode_documents(CONTENTS))
    store.close()
    hybrid, words = with_store(tmp_path, tiny_bert, lambda each: each.hybrid, bm25=Bm25())
    assert (hybrid, words) == (True, "collection")


def measured(folder, model, encoder, queries, **options):
    gain, _ = with_store(
        folder,
        model,
        lambda store: measure(encoder, store, queries, words="copy", **options),
        bm25=Bm25(),
    )
    return gain


def test_every_method_is_measured_against_retrieval(titled, tiny_bert, bert):
    gain = measured(titled, tiny_bert, bert, QUERIES)
    assert list(gain.results) == ["retrieve", "hybrid", "evidence", "listwise"]
    assert (gain.queries, gain.measure, gain.differences.against) == (2, "nDCG@10", "retrieve")
    assert set(gain.differences.by_method) == {"hybrid", "evidence", "listwise"}
    assert all(0 <= result.measures["nDCG@10"] <= 1 for result in gain.results.values())


def test_made_up_queries_are_measured_by_their_own_documents(titled, tiny_bert, bert):
    with opened(str(titled)) as connection:
        sample = examine(connection, Asked(str(titled), [str(tiny_bert)])).sample
    gain = measured(titled, tiny_bert, bert, made_up(sample.texts, seed=0))
    assert gain.queries == len(DOCUMENTS)
    assert gain.results["hybrid"].measures["nDCG@10"] > 0.5


def test_the_judges_first_documents_make_the_figures(titled, tiny_bert, bert):
    """This judge likes the first method's order best, so that one has all."""

    def rule(asked):
        if asked.query == QUERIES.texts["q2"]:
            return said("no order")
        order = {text: rank for rank, text in enumerate(first)}
        best = sorted(asked.passages, key=lambda n: order[asked.passages[n]])
        return said(" > ".join(f"[{n}]" for n in best))

    judged = Queries(QUERIES.texts, {}, "judge")
    plain = measured(titled, tiny_bert, bert, QUERIES).results["retrieve"].rankings["q1"]
    first = [" ".join(hit.document.text.split()) for hit in plain]
    with ChatServer(rule) as server:

        def teacher():
            return ChatTeacher(server.url, "m", terms="none", attempts=1)

        gain = measured(titled, tiny_bert, bert, judged, teacher=teacher)
    assert (gain.queries, gain.unjudged, gain.measure) == (1, 1, "nDCG@5")
    assert gain.results["retrieve"].measures["nDCG@5"] == pytest.approx(1.0)


def test_a_judge_without_an_answer_is_an_error(titled, tiny_bert, bert):
    with (
        ChatServer(lambda asked: said("no")) as server,
        pytest.raises(ValueError, match="no query"),
    ):
        measured(
            titled,
            tiny_bert,
            bert,
            Queries(QUERIES.texts, {}, "judge"),
            teacher=lambda: ChatTeacher(server.url, "m", terms="none", attempts=1),
        )
