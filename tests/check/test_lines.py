"""The lines to paste run, and they search the collection that was checked."""

from __future__ import annotations

import pytest

from e2rank_rag.check.examine import Asked, examine
from e2rank_rag.check.lines import Place, haystack_lines, langchain_lines
from e2rank_rag.check.opening import opened
from e2rank_rag.models.encoder import Encoder
from e2rank_rag.store import LANGCHAIN_LAYOUT, Layout
from e2rank_rag.store.sparse import SparseWords
from e2rank_rag.types import Document
from e2rank_rag.words import Bm25
from tests.checking import CONTENTS, DOCUMENTS, fill

pytest.importorskip("haystack")
pytest.importorskip("langchain_core")

NUMBERED = [Document(str(n), d.text, d.meta) for n, d in enumerate(DOCUMENTS)]


def program_of(folder, model, kind):
    with opened(str(folder)) as connection:
        findings = examine(connection, Asked(str(folder), [str(model)]))
    assert findings.match is not None
    return kind(findings.place, findings.match)


@pytest.fixture(scope="module")
def titled(tmp_path_factory, tiny_bert):
    """Haystack's layout, with titles in front, cut at 64 tokens."""
    folder = tmp_path_factory.mktemp("titled")
    texts = [f"{d.meta['title']}. {d.text}" for d in DOCUMENTS]
    with Encoder.from_pretrained(tiny_bert, max_length=64) as encoder:
        fill(folder, encoder.encode_documents(texts, on_cut=lambda cut: None)).close()
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory, bert):
    """LangChain's layout, with the text alone behind a prefix."""
    folder = tmp_path_factory.mktemp("plain")
    vectors = bert.encode_documents([f"passage: {text}" for text in CONTENTS])
    fill(folder, vectors, documents=NUMBERED, layout=LANGCHAIN_LAYOUT).close()
    return folder


@pytest.mark.parametrize("index", ["titled", "plain"])
@pytest.mark.parametrize("kind", [haystack_lines, langchain_lines])
def test_the_lines_run_and_print_documents(request, tiny_bert, index, kind, capsys):
    folder = request.getfixturevalue(index)
    program = program_of(folder, tiny_bert, kind)
    names = {"__name__": "__main__"}
    exec(compile(program, kind.__name__, "exec"), names)
    names["retriever"].close()
    names["store"].close() if kind is haystack_lines else names["store"].store.close()
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == len(DOCUMENTS)
    begins = {text[:30] for text in CONTENTS}
    assert all(any(begin in line for begin in begins) for line in printed)


def test_the_lines_say_what_was_found(titled, plain, tiny_bert):
    program = program_of(titled, tiny_bert, haystack_lines)
    assert 'meta_fields_to_embed=["title"]' in program
    assert 'embedding_separator=". "' in program
    assert 'encoder_kwargs={"max_length": 64}' in program
    program = program_of(plain, tiny_bert, langchain_lines)
    assert "layout=LANGCHAIN_LAYOUT" in program
    assert 'document="passage: {document}"' in program
    assert "trust" not in program
    assert 'stored_vectors="trust"' in program_of(titled, tiny_bert, langchain_lines)


def test_names_from_outside_are_literals_of_python():
    hostile = 'a"); import os; ("\x1b[2J\u202e'
    words = SparseWords(Bm25(language="german"), hostile)
    layout = Layout(id_key=None, content_key=hostile, metadata_key="m")
    place = Place(hostile, hostile, layout, hostile, keyed=True, words=words)
    options = ", ".join(place.options())
    found = eval(f"dict({options})", {"os": _Environment, "Layout": Layout, "Bm25": Bm25})
    assert (found["layout"], found["vector_name"], found["bm25_name"]) == (layout, hostile, hostile)
    assert (found["bm25"], found["api_key"]) == (words.bm25, "key")
    assert options.isprintable()
    assert place.names() == ["Bm25", "Layout"]


class _Environment:
    environ = {"QDRANT_API_KEY": "key"}  # noqa: RUF012
