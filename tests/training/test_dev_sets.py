"""Sets to measure on: without a ceiling that the first model sets, each process its share."""

from __future__ import annotations

import json
import threading

import numpy as np
import pytest

from e2rank_rag.rerankers import ListwiseReranker
from e2rank_rag.training import dev_sets
from e2rank_rag.training.config import Source
from e2rank_rag.training.dev_sets import DevSet, RetrievalSet
from e2rank_rag.training.sources import read_dev, read_retrieval
from e2rank_rag.types import Document, ListwiseEncoding, PromptUsage
from tests.encoders import CountingEncoder, TableEncoder


class Turning(TableEncoder):
    """Its listwise vector is that of the last document of the prompt."""

    def encode_listwise(self, queries, candidates, **options):
        vectors = np.concatenate([self.encode_documents([texts[-1]]) for texts in candidates])
        return ListwiseEncoding(vectors, tuple(PromptUsage(1, 0, 1) for _ in queries))


def test_a_set_is_measured_plain_and_reranked():
    encoder = Turning({"q": [1, 0], "near": [0.9, 0.1], "far": [0.1, 0.9]})
    documents = [Document("n", "near"), Document("f", "far")]
    dev = DevSet("d", {"1": "q"}, {"1": documents}, {"1": {"f": 1}})
    measured = dev.measure(encoder, None, ListwiseReranker(encoder, stored_vectors="trust"))
    assert measured == pytest.approx({"retrieve": 1 / np.log2(3), "rerank": 1.0})


def unit(angle):
    return [float(np.cos(np.radians(angle))), float(np.sin(np.radians(angle)))]


@pytest.fixture
def folder(tmp_path):
    """Ten queries; the answer of each is the last document that the untrained model would find."""
    folder = tmp_path / "far"
    (folder / "qrels").mkdir(parents=True)
    corpus = [{"_id": f"d{i}", "text": f"document {i}"} for i in range(40)]
    queries = [{"_id": f"q{i}", "text": f"query {i}"} for i in range(10)]
    for name, records in (("corpus", corpus), ("queries", queries)):
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (folder / f"{name}.jsonl").write_text(lines)
    rows = "".join(f"q{i}\td{39 - i}\t1\n" for i in range(10))
    (folder / "qrels" / "dev.tsv").write_text("query-id\tcorpus-id\tscore\n" + rows)
    return folder


DOCUMENTS = {f"document {i}": unit(i * 2) for i in range(40)}
UNTRAINED = TableEncoder({**DOCUMENTS, **{f"query {i}": unit(0) for i in range(10)}})
ANSWERS = {f"query {i}": unit(2 * (39 - i)) for i in range(10)}
LISTWISE = {f"listwise {query}": vector for query, vector in ANSWERS.items()}
TRAINED = TableEncoder({**DOCUMENTS, **ANSWERS, **LISTWISE})


def test_the_dev_measure_of_stage_1_rises_above_what_the_untrained_base_found(folder):
    source = Source(path=folder, split="dev", depth=3)
    (lists,) = read_dev([source], UNTRAINED, None, seed=0)
    assert lists.measure(TRAINED, None) == {"retrieve": 0.0}  # the ceiling of its candidates
    (found,) = read_retrieval([source], UNTRAINED, seed=0)
    assert found.name == "far"
    assert found.measure(UNTRAINED)["retrieve"] < 0.3
    assert found.measure(TRAINED) == {"retrieve": 1.0}


def test_what_is_encoded_at_each_measure_is_bounded_by_the_candidates(folder):
    (found,) = read_retrieval([Source(path=folder, split="dev", depth=3)], UNTRAINED, seed=0)
    assert len(found.documents) == 10 + 3  # relevant ones, and the three that all queries find
    counting = CountingEncoder(TRAINED)
    found.measure(counting)
    assert sorted(counting.documents) == sorted(document.text for document in found.documents)


def test_pairs_are_measured_among_the_documents_of_all(tmp_path):
    """A pair alone holds nothing that its answer could lose to."""
    path = tmp_path / "pairs.jsonl"
    records = [{"query": f"query {i}", "pos": f"document {i}"} for i in range(3)]
    records.append({"query": "query 0", "pos": "document 9"})
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    (found,) = read_retrieval([Source(path=path)], UNTRAINED, seed=0)
    assert [document.text for document in found.documents] == [
        "document 0",
        "document 9",
        "document 1",
        "document 2",
    ]
    assert found.qrels == {
        "query 0": {"0": 1, "1": 1},
        "query 1": {"2": 1},
        "query 2": {"3": 1},
    }
    assert found.measure(UNTRAINED)["retrieve"] < 1.0


def test_a_set_without_a_relevant_document_is_refused(folder):
    (folder / "qrels" / "dev.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t0\n")
    with pytest.raises(ValueError, match="far has no query with a relevant document to measure on"):
        read_retrieval([Source(path=folder, split="dev")], UNTRAINED, seed=0)


def test_the_query_itself_is_not_a_wrong_answer():
    encoder = TableEncoder({"q": unit(0), "near": unit(10), "far": unit(80)})
    found = RetrievalSet.of("d", {"1": "q"}, {"1": {"near": 1.0}}, ["q", "far"])
    assert found.measure(encoder) == {"retrieve": 1.0}
    judged = RetrievalSet.of("d", {"1": "q"}, {"1": {"q": 1.0}}, ["near", "far"])
    assert judged.measure(encoder) == {"retrieve": 1.0}


def test_the_query_itself_is_not_a_wrong_answer_under_its_title(tmp_path):
    """As in ArguAna: each query is a document, with a title before it, and near to the others."""
    folder = tmp_path / "titled"
    (folder / "qrels").mkdir(parents=True)
    names = ["one", "two", "three"]
    corpus = [{"_id": name, "title": "On", "text": f"argument {name}"} for name in names]
    queries = [{"_id": name, "text": f"argument {name}"} for name in names]
    for name, records in (("corpus", corpus), ("queries", queries)):
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (folder / f"{name}.jsonl").write_text(lines)
    rows = "one\ttwo\t1\ntwo\tthree\t1\nthree\ttwo\t1\n"
    (folder / "qrels" / "dev.tsv").write_text("query-id\tcorpus-id\tscore\n" + rows)
    angles = dict(zip(names, (0, 20, 40), strict=True))
    texts = {f"argument {name}": unit(angle) for name, angle in angles.items()}
    encoder = TableEncoder({**texts, **{f"On {text}": vector for text, vector in texts.items()}})
    (found,) = read_retrieval([Source(path=folder, split="dev")], encoder, seed=0)
    measured = found.measure(encoder)["retrieve"]
    # "two" lies as near to "one" as to its answer; the answers of the others are at their side.
    assert measured >= (2 + 1 / np.log2(3)) / 3 - 1e-6


class Side:
    """Two threads in place of two processes: what they hand over to one another."""

    def __init__(self):
        self.local = threading.local()
        self.parts = [None, None]
        self.barrier = threading.Barrier(2)

    def gather(self, part):
        self.parts[self.local.number] = part
        self.barrier.wait(timeout=30)
        parts = list(self.parts)
        self.barrier.wait(timeout=30)
        return parts

    def run(self, work):
        results = [None, None]

        def side(number):
            self.local.number = number
            results[number] = work(number)

        threads = [threading.Thread(target=side, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
        return results


@pytest.fixture
def side(monkeypatch):
    side = Side()
    monkeypatch.setattr(dev_sets, "gather_objects", side.gather)
    monkeypatch.setattr(dev_sets, "share", lambda items: items[side.local.number :: 2])
    monkeypatch.setattr(dev_sets, "processes", lambda: 2)
    return side


def test_each_process_measures_its_share_and_all_get_all_figures(folder, side):
    counting = [CountingEncoder(TRAINED) for _ in range(2)]
    (found,) = read_retrieval([Source(path=folder, split="dev", depth=3)], UNTRAINED, seed=0)
    assert side.run(lambda number: found.measure(counting[number])) == [{"retrieve": 1.0}] * 2
    halves = [sorted(each.documents) for each in counting]
    assert [len(half) for half in halves] == [7, 6]
    assert sorted(halves[0] + halves[1]) == sorted(d.text for d in found.documents)
    assert [len(each.queries) for each in counting] == [5, 5]


def test_each_process_reranks_its_share_of_the_queries(folder, side):
    (lists,) = read_dev([Source(path=folder, split="dev", depth=39)], UNTRAINED, None, seed=0)
    counting = [CountingEncoder(TRAINED) for _ in range(2)]
    rerankers = [ListwiseReranker(each, stored_vectors="trust") for each in counting]
    both = side.run(lambda n: lists.measure(counting[n], None, rerankers[n]))
    assert both[0] == both[1]
    assert set(both[0]) == {"retrieve", "rerank"}
    assert sorted(p["query"] for each in counting for p in each.prompts) == sorted(
        lists.queries.values()
    )
    assert all(len(each.prompts) == len(each.queries) for each in counting)


def test_fewer_queries_than_processes_are_measured_all_the_same(side):
    encoder = Turning({"q": [1, 0], "near": [0.9, 0.1], "far": [0.1, 0.9]})
    documents = [Document("n", "near"), Document("f", "far")]
    dev = DevSet("d", {"1": "q"}, {"1": documents}, {"1": {"f": 1}})
    reranker = ListwiseReranker(encoder, stored_vectors="trust")
    for measured in side.run(lambda number: dev.measure(encoder, None, reranker)):
        assert measured == pytest.approx({"retrieve": 1 / np.log2(3), "rerank": 1.0})
    found = RetrievalSet.of("d", {"1": "q"}, {"1": {"near": 1.0}}, [])
    assert side.run(lambda number: found.measure(encoder)) == [{"retrieve": 1.0}] * 2
