"""The shipped collection is all of SciFact, small, and under terms that travel with it."""

import pytest

from e2rank_rag.data import shipped_collection

LIMIT_BYTES = 4_000_000


@pytest.fixture(scope="module")
def scifact():
    return shipped_collection()


def test_scifact_has_the_official_counts(scifact):
    assert scifact.name == "scifact"
    assert scifact.splits == ("test", "train")
    assert sum(1 for _ in scifact.documents()) == 5183
    for split, queries, judgements in (("test", 300, 339), ("train", 809, 919)):
        assert len(scifact.queries(split)) == queries
        assert sum(len(grades) for grades in scifact.qrels(split).values()) == judgements


def test_every_judged_document_is_there_once(scifact):
    ids = [document.id for document in scifact.documents()]
    assert len(ids) == len(set(ids))
    for split in scifact.splits:
        assert {d for grades in scifact.qrels(split).values() for d in grades} <= set(ids)


def test_no_query_is_in_both_splits(scifact):
    assert not scifact.queries("train").keys() & scifact.queries("test").keys()


def test_documents_carry_their_title_and_nothing_else(scifact):
    assert all(set(document.meta) <= {"title"} for document in scifact.documents())


def test_the_collection_is_small_and_names_its_terms(scifact):
    files = [path for path in scifact.folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < LIMIT_BYTES
    source = (scifact.folder / "SOURCE.md").read_text()
    assert "CC BY 4.0" in source
    assert "ODC-By 1.0" in source


def test_an_unknown_name_lists_those_shipped():
    with pytest.raises(ValueError, match=r"no collection 'nfcorpus' .* there is: \['scifact'\]"):
        shipped_collection("nfcorpus")
