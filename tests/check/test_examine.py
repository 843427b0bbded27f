"""The whole check: which models are opened, and what is said of the described pipeline."""

from __future__ import annotations

import pytest
from qdrant_client import models

from e2rank_rag.check.examine import Asked, examine
from e2rank_rag.check.opening import opened
from e2rank_rag.check.probe import Wish
from tests.checking import CONTENTS, DOCUMENTS, fill, raw_collection, turned


@pytest.fixture(scope="module")
def index(tmp_path_factory, bert):
    folder = tmp_path_factory.mktemp("index")
    fill(folder, bert.encode_documents(CONTENTS)).close()
    return folder


def found(folder, models_, **options):
    with opened(str(folder)) as connection:
        return examine(connection, Asked(str(folder), list(map(str, models_)), **options))


def test_models_are_tried_until_one_is_named(index, tiny_xlmr, tiny_bert, tiny_qwen3):
    findings = found(index, [tiny_xlmr, tiny_bert, tiny_qwen3])
    assert [each.model for each in findings.tried] == [str(tiny_xlmr), str(tiny_bert)]
    assert findings.match.model == str(tiny_bert)
    assert findings.mismatches is None
    assert findings.place.collection == "notes"


def test_a_model_that_cannot_be_opened_is_told_and_the_next_one_tried(index, tiny_bert, tmp_path):
    findings = found(index, [tmp_path / "missing", tiny_bert])
    assert "there is no model folder" in findings.tried[0].reason
    assert findings.match is not None


def test_the_described_model_is_tried_too_and_compared(index, tiny_xlmr, tiny_bert):
    findings = found(index, [tiny_xlmr], described=str(tiny_bert))
    assert findings.mismatches == ()
    findings = found(index, [tiny_bert], described=str(tiny_xlmr))
    (mismatch,) = findings.mismatches
    assert mismatch.what == "model"
    wish = Wish(("title",), ". ")
    (mismatch,) = found(index, [tiny_bert], described=str(tiny_bert), wish=wish).mismatches
    assert mismatch.pipeline == "title in front of the text, joined by '. '"


def test_nothing_is_said_of_a_pipeline_where_no_model_is_named(tmp_path, bert, tiny_bert):
    fill(tmp_path, turned(bert.encode_documents(CONTENTS))).close()
    findings = found(tmp_path, [tiny_bert], described=str(tiny_bert))
    assert (findings.match, findings.mismatches, findings.place) == (None, None, None)
    assert findings.nearest.model == str(tiny_bert)


def test_distances_that_no_store_searches_have_no_place(tmp_path, bert, tiny_bert):
    payloads = [{"body": d.text, "info": dict(d.meta)} for d in DOCUMENTS]
    config = models.VectorParams(size=32, distance=models.Distance.EUCLID)
    raw_collection(tmp_path, payloads, 3 * bert.encode_documents(CONTENTS), config=config)
    findings = found(tmp_path, [tiny_bert])
    assert (findings.match is not None, findings.place) == (True, None)
    assert findings.sample.layout.guessed


def test_several_vectors_per_document_are_refused(tmp_path, tiny_bert):
    config = models.VectorParams(
        size=2,
        distance=models.Distance.COSINE,
        multivector_config=models.MultiVectorConfig(
            comparator=models.MultiVectorComparator.MAX_SIM
        ),
    )
    raw_collection(tmp_path, [], [], config=config)
    with pytest.raises(ValueError, match="multivector"):
        found(tmp_path, [tiny_bert])
