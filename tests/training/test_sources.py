"""Sources are read once, drawn by the seed, and measured as they would be served."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest

from e2rank_rag.training.config import ContrastiveConfig, Source
from e2rank_rag.training.sources import read_dev, read_retrieval, read_training
from e2rank_rag.training.stages.contrastive import ContrastiveData
from e2rank_rag.training.vectors import TextVectors
from tests.encoders import CountingEncoder

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


def corpus_file(folder, texts):
    path = folder / "corpus.jsonl"
    lines = [json.dumps({"_id": id, "text": text}) + "\n" for id, text in texts.items()]
    path.write_text("".join(lines))
    return path


def test_pairs_are_mined_in_the_whole_corpus(tmp_path, bert):
    pairs = [("purring", "cats purr"), ("barking", "dogs bark")]
    corpus = corpus_file(tmp_path, TEXTS)
    source = Source(path=pairs_file(tmp_path, pairs), mine=True, corpus=corpus)
    for examples in (
        read_training([source], bert, TextVectors(bert.dim), seed=0)[0],
        read_training([source], bert, None, seed=0)[0],
    ):
        for example in examples:
            found = dict(zip(example.ids, example.documents, strict=True))
            assert found == TEXTS
            assert sum(example.labels) == 1.0
    (dev,) = read_dev([source], bert, None, seed=0)
    assert {document.text for document in dev.candidates["barking"]} == set(TEXTS.values())
    assert dev.qrels["barking"] == {"dogs": 1}
    (found,) = read_retrieval([source], bert, seed=0)
    assert {document.text for document in found.documents} == set(TEXTS.values())


def test_a_text_that_the_corpus_lacks_is_mined_too(tmp_path, bert):
    corpus = corpus_file(tmp_path, {"2": "dogs bark", "1": "salt"})
    pairs = [("purring", "cats purr"), ("barking", "dogs bark")]
    source = Source(path=pairs_file(tmp_path, pairs), mine=True, corpus=corpus)
    (examples,) = read_training([source], bert, None, seed=0)
    for example in examples:
        assert set(example.documents) == {"dogs bark", "salt", "cats purr"}
        assert len(set(example.ids)) == 3  # no id of the corpus is given to another text
        found = dict(zip(example.documents, example.ids, strict=True))
        assert (found["dogs bark"], found["salt"]) == ("2", "1")


def test_two_documents_of_one_id_are_refused(tmp_path, bert):
    corpus = tmp_path / "corpus.jsonl"
    lines = [json.dumps({"_id": "7", "text": text}) + "\n" for text in ("salt", "pepper")]
    corpus.write_text("".join(lines))
    source = Source(path=pairs_file(tmp_path, [("q", "cats")]), mine=True, corpus=corpus)
    with pytest.raises(ValueError, match="two different documents with the id '7'"):
        read_training([source], bert, None, seed=0)


def test_mined_pairs_keep_the_task_and_the_source_of_their_query(tmp_path, bert):
    path = tmp_path / "pairs.jsonl"
    records = [
        {"query": "purring", "pos": "cats purr", "task": "find cats", "source": "animals"},
        {"query": "barking", "pos": "dogs bark"},
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    source = Source(path=path, mine=True, task="find all")
    (examples,) = read_training([source], bert, None, seed=0)
    assert [(each.task, each.source) for each in examples] == [
        ("find cats", "animals"),
        ("find all", None),
    ]


def test_hybrid_candidates_are_found_by_their_words(folder, bert):
    lines = [json.dumps({"_id": f"f{i}", "text": f"purring {i}"}) + "\n" for i in range(3)]
    with (folder / "corpus.jsonl").open("a") as file:
        file.writelines(lines)
    source = Source(path=folder, candidates="hybrid", depth=3)
    known = TextVectors(bert.dim)
    (train,) = read_training([source], bert, known, seed=0)
    (dev,) = read_dev([source], bert, known, seed=0)
    purring = [text for text in train[0].documents if text.startswith("purring")]
    assert purring
    assert [each.text for each in dev.candidates["1"]][:3] == list(train[0].documents)[:3]


def test_languages_and_candidates_are_of_mined_lists_only(tmp_path):
    path = pairs_file(tmp_path, [("q", "cats")])
    for setting in ({}, {"language": "german"}):
        with pytest.raises(ValueError, match="is for lists that are mined"):
            Source(path=path, candidates="hybrid", **setting)
        assert Source(path=path, mine=True, candidates="hybrid", **setting)
    with pytest.raises(ValueError, match="language is for hybrid candidates"):
        Source(path=path, mine=True, language="german")
    with pytest.raises(ValueError, match="language must be one of arabic, danish"):
        Source(path=path, mine=True, candidates="hybrid", language="klingon")
    assert Source(path=path, mine=True, candidates="hybrid", language=None).language is None


def test_the_query_itself_is_not_mined(folder, tmp_path, bert):
    """As ArguAna and duplicate questions: a query is a document of its collection."""
    lines = [
        {"_id": "same", "text": "purring"},
        {"_id": "titled", "title": "On", "text": "barking"},
    ]
    with (folder / "corpus.jsonl").open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    (examples,) = read_training([Source(path=folder)], bert, None, seed=0)
    for example, own in zip(examples, ("purring", "On barking"), strict=True):
        assert own not in example.documents
        assert len(example.documents) == 5
    (dev,) = read_dev([Source(path=folder, split="train")], bert, None, seed=0)
    assert "purring" not in [document.text for document in dev.candidates["1"]]
    # Where it is judged, it is an answer.
    with (folder / "qrels" / "train.tsv").open("a") as file:
        file.write("1\tsame\t1\n")
    (examples,) = read_training([Source(path=folder)], bert, None, seed=0)
    assert "purring" in examples[0].documents


@pytest.mark.parametrize("mine", [True, False])
def test_the_query_itself_is_no_in_batch_negative_under_its_title(folder, bert, mine):
    lines = [
        {"_id": "1", "title": "On", "text": "purring"},
        {"_id": "2", "title": "On", "text": "barking"},
    ]
    with (folder / "corpus.jsonl").open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    (examples,) = read_training([Source(path=folder)], bert, None, seed=0, mine=mine)
    assert [example.copies for example in examples] == [("On purring",), ("On barking",)]
    config = ContrastiveConfig(init_from="m", output="o", data=[{"path": "x"}], negatives=9)
    data = ContrastiveData(config, [examples], {})
    for example, own in zip(examples, ("On purring", "On barking"), strict=True):
        drawn = data.sample(example, random.Random(0))
        assert own in drawn.relevant
        assert own not in drawn.documents


def test_pairs_that_are_duplicate_questions_have_no_query_as_a_negative(tmp_path, bert):
    questions = [("a cat?", "cats?"), ("cats?", "a cat?"), ("a dog?", "dogs?")]
    source = Source(path=pairs_file(tmp_path, questions), mine=True)
    (examples,) = read_training([source], bert, None, seed=0)
    for example in examples:
        assert example.query not in example.documents


@pytest.mark.parametrize("labels", [None, [0, 0, 1, 0]])
def test_a_teachers_order_is_mined_by_what_is_relevant_in_it(tmp_path, bert, labels):
    path = tmp_path / "ordered.jsonl"
    record = {"query": "q", "documents": ["a", "b", "c", "d"], "ranking": [2, 1, 3, 4]}
    path.write_text(json.dumps(record if labels is None else {**record, "labels": labels}) + "\n")
    (examples,) = read_training([Source(path=path, mine=True)], bert, None, seed=0)
    relevant = dict(zip(examples[0].documents, examples[0].labels, strict=True))
    assert relevant == {**dict.fromkeys("abcd", 0.0), "b" if labels is None else "c": 1.0}
    (dev,) = read_dev([Source(path=path)], bert, None, seed=0)
    order = {"0": 3, "1": 4, "2": 2, "3": 1}
    assert dev.qrels["0"] == (order if labels is None else {"0": 0, "1": 0, "2": 1, "3": 0})


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
