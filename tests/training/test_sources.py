"""Sources are read once, drawn by the seed, and measured as they would be served."""

from __future__ import annotations

import json

import numpy as np
import pytest

from e2rank_rag.rerankers import ListwiseReranker
from e2rank_rag.training.config import Source
from e2rank_rag.training.sources import DevSet, read_dev, read_training
from e2rank_rag.training.vectors import TextVectors
from e2rank_rag.types import Document, ListwiseEncoding, PromptUsage
from tests.encoders import CountingEncoder, TableEncoder

TEXTS = {"cats": "cats purr", "dogs": "dogs bark", "ferry": "a ferry crosses", "salt": "salt"}
QUERIES = {"1": "purring", "2": "barking", "3": "crossing"}
JUDGED = {"1": "cats", "2": "dogs", "3": "ferry"}


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "animals"
    (folder / "qrels").mkdir(parents=True)
    for name, texts in (("corpus", TEXTS), ("queries", QUERIES)):
        lines = [json.dumps({"_id": id, "text": text}) + "\n" for id, text in texts.items()]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    for split, ids in (("train", "12"), ("dev", "23")):
        rows = "".join(f"{id}\t{JUDGED[id]}\t1\n" for id in ids)
        (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + rows)
    return folder


def test_the_corpus_of_a_folder_is_encoded_once_for_all_its_splits(folder, bert):
    encoder = CountingEncoder(bert)
    known = TextVectors(encoder.dim)
    (train,) = read_training([Source(path=folder)], encoder, known, seed=0)
    (dev,) = read_dev([Source(path=folder, split="dev")], encoder, known, seed=0)
    assert sorted(encoder.documents) == sorted(TEXTS.values())
    assert [example.query for example in train] == ["purring", "barking"]
    assert list(dev.queries) == ["2", "3"]
    np.testing.assert_array_equal(
        known.of(["salt", "cats purr"]), encoder.encode_documents(["salt", "cats purr"])
    )


def test_a_limit_draws_by_the_seed_and_keeps_the_order(tmp_path, bert):
    path = tmp_path / "lists.jsonl"
    lines = [json.dumps({"query": f"q{i}", "pos": "cats purr"}) + "\n" for i in range(20)]
    path.write_text("".join(lines))

    def drawn(seed):
        (examples,) = read_training([Source(path=path, limit=5)], bert, None, seed=seed)
        return [int(example.query[1:]) for example in examples]

    assert drawn(1) == drawn(1) == sorted(drawn(1))
    assert len(drawn(1)) == 5
    assert drawn(1) != drawn(2)


def pairs_file(folder, pairs):
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps({"query": q, "pos": p}) + "\n" for q, p in pairs))
    return path


def test_pairs_are_mined_from_the_documents_of_all(tmp_path, bert):
    pairs = [("purring", "cats purr"), ("barking", "dogs bark"), ("purring", "a cat that purrs")]
    source = Source(path=pairs_file(tmp_path, pairs), mine=True)
    known = TextVectors(bert.dim)
    (train,) = read_training([source], bert, known, seed=0)
    assert [example.query for example in train] == ["purring", "barking"]
    purring, barking = (
        {d: label for d, label in zip(e.documents, e.labels, strict=True)} for e in train
    )
    assert purring == {"cats purr": 1, "a cat that purrs": 1, "dogs bark": 0}
    assert barking == {"cats purr": 0, "a cat that purrs": 0, "dogs bark": 1}
    # As retrieved, not positives first: a place in the prompt must not tell the label.
    queries = bert.encode_queries([example.query for example in train])
    for example, query in zip(train, queries, strict=True):
        cosines = known.of(example.documents) @ query
        assert cosines.tolist() == sorted(cosines, reverse=True)
    (dev,) = read_dev([source], bert, known, seed=0)
    assert dev.qrels == {"purring": {"0": 1, "2": 1}, "barking": {"1": 1}}


def test_a_file_is_taken_as_it_is_unless_it_says_otherwise(tmp_path, bert):
    path = pairs_file(tmp_path, [("purring", "cats purr"), ("barking", "dogs bark")])
    (train,) = read_training([Source(path=path)], bert, None, seed=0)
    assert [example.documents for example in train] == [("cats purr",), ("dogs bark",)]


def test_a_folder_without_a_relevant_document_is_refused(folder, bert):
    (folder / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\n1\tcats\t0\n")
    with pytest.raises(ValueError, match="animals has no query with a relevant document"):
        read_training([Source(path=folder)], bert, None, seed=0)


def test_a_file_to_measure_on_counts_its_own_labels(tmp_path, bert):
    path = tmp_path / "dev.jsonl"
    record = {"query": "q", "documents": ["a", "b"], "labels": [0, 2], "ids": ["x", "y"]}
    path.write_text(json.dumps(record) + "\n")
    (dev,) = read_dev([Source(path=path)], bert, None, seed=0)
    assert dev.name == "dev"
    assert dev.qrels == {"0": {"x": 0, "y": 2}}
    assert [document.id for document in dev.candidates["0"]] == ["x", "y"]


class Turning(TableEncoder):
    """Its listwise vector is that of the last document of the prompt."""

    def encode_listwise(self, queries, candidates, *, depth=None, query_weight=None):
        vectors = np.concatenate([self.encode_documents([texts[-1]]) for texts in candidates])
        return ListwiseEncoding(vectors, tuple(PromptUsage(1, 0, 1) for _ in queries))


def test_a_set_is_measured_plain_and_reranked():
    encoder = Turning({"q": [1, 0], "near": [0.9, 0.1], "far": [0.1, 0.9]})
    documents = [Document("n", "near"), Document("f", "far")]
    dev = DevSet("d", {"1": "q"}, {"1": documents}, {"1": {"f": 1}})
    measured = dev.measure(encoder, None, ListwiseReranker(encoder, stored_vectors="trust"))
    assert measured == pytest.approx({"retrieve": 1 / np.log2(3), "rerank": 1.0})
