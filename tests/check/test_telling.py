"""What a check tells: everything that a reader needs to act, and nothing that was not measured."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from qdrant_client import models

from e2rank_rag.check.examine import Asked, examine
from e2rank_rag.check.lines import haystack_lines
from e2rank_rag.check.opening import opened
from e2rank_rag.check.telling import as_json, called, layout_lines, model_lines
from e2rank_rag.store import QdrantStore
from e2rank_rag.words import Bm25
from tests.checking import CONTENTS, DOCUMENTS, raw_collection, turned


def found(folder, model):
    with opened(str(folder)) as connection:
        return examine(connection, Asked(str(folder), [str(model)]))


@pytest.fixture(scope="module")
def flat(tmp_path_factory, bert, tiny_bert):
    """A payload without a meta, vectors of length 3 and the distance Dot, titles in front."""
    payloads = [{"body": d.text, "title": d.meta["title"], "n": 1} for d in DOCUMENTS]
    vectors = 3 * bert.encode_documents([f"{d.meta['title']}: {d.text}" for d in DOCUMENTS])
    config = models.VectorParams(size=32, distance=models.Distance.DOT)
    folder = tmp_path_factory.mktemp("flat")
    return found(raw_collection(folder, payloads, vectors, config=config), tiny_bert)


def test_an_unknown_layout_is_told_with_what_was_taken_for_the_text(flat):
    lines = list(layout_lines(flat))
    assert lines[0] == "collection 'notes': 8 points, in no layout that is known here"
    assert "  the text seems to be at 'body', its id to be the point's" in lines
    assert (
        "  vectors are 3 to 3 long, not of unit length, which changes the order of a search by Dot"
        in lines
    )


def test_a_field_beside_the_meta_is_named_and_left_out_of_the_lines(flat):
    assert "  text: title in front of it, joined by ': '" in list(model_lines(flat))
    program = haystack_lines(flat.place, flat.match)
    assert "meta_fields_to_embed" not in program
    assert 'stored_vectors="trust"' in program


def test_a_record_and_its_words_are_told(tmp_path, bert, tiny_bert):
    store = QdrantStore.open(tmp_path, "notes", bm25=Bm25())
    store.prepare(bert.dim, fingerprint=bert.fingerprint, model="theirs")
    store.upsert(DOCUMENTS, bert.encode_documents(CONTENTS))
    store.close()
    lines = list(layout_lines(found(tmp_path, tiny_bert)))
    assert f"  record of the model: 'theirs', fingerprint {bert.fingerprint}" in lines
    assert "  sparse vectors: 'bm25', with IDF" in lines


def test_odd_documents_are_listed_with_their_cosines(flat):
    cosines = flat.match.cosines.copy()
    cosines[:4] = 0.5
    odd = replace(flat, match=replace(flat.match, cosines=cosines))
    lines = list(model_lines(odd))
    first = flat.match.ids[0]
    assert any(line.startswith(f"  not with '{first}' (0.500), ") for line in lines)
    assert any("and 1 more: written from other texts" in line for line in lines)


def test_models_that_were_not_compared_are_told_with_the_reason(tmp_path, tiny_bert, bert):
    payloads = [{"body": d.text} for d in DOCUMENTS]
    raw_collection(tmp_path, payloads, turned(bert.encode_documents(CONTENTS)))
    first, *_ = model_lines(found(tmp_path, tmp_path / "missing"))
    assert "missing was not compared: there is no model folder" in first


def test_the_shipped_models_are_called_by_what_they_are():
    assert called("minilm") == "all-MiniLM-L6-v2, which is 'minilm' and 'e2rank-minilm' here"
    assert called("./other") == "'./other'"


def test_the_report_is_json(flat):
    written = json.loads(json.dumps(as_json(flat, None, {})))
    assert (written["layout"], written["vector_lengths"]["least"]) == ("unknown", pytest.approx(3))
    assert written["tried"][0]["same"] == 8
