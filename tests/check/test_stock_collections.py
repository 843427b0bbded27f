"""Collections that sentence-transformers and the frameworks' own stores wrote are named.

Texts are beginnings of SciFact's abstracts, of some 140 to 200 tokens.
"""

from __future__ import annotations

import os
from itertools import islice

import pytest

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "false"  # importing haystack would write a file for it

from qdrant_client import QdrantClient, models

from e2rank_rag.check.opening import opened
from e2rank_rag.check.outline import outline
from e2rank_rag.check.probe import Wish, compare
from e2rank_rag.check.sample import draw
from e2rank_rag.data import shipped_collection
from e2rank_rag.models.shipped import minilm_folder
from tests.checking import turned

haystack = pytest.importorskip("haystack")
haystack_stores = pytest.importorskip("haystack_integrations.document_stores.qdrant")
langchain_qdrant = pytest.importorskip("langchain_qdrant")
embeddings = pytest.importorskip("langchain_core.embeddings")
sentence_transformers = pytest.importorskip("sentence_transformers")

COUNT = 5
WORDS = 100


@pytest.fixture(scope="module")
def abstracts():
    """Title and text of the first abstracts, each of so many words."""
    documents = islice(shipped_collection().documents(), COUNT)
    bodies = [(d.meta["title"], d.text.removeprefix(d.meta["title"])) for d in documents]
    return [(title, " ".join(body.split()[:WORDS])) for title, body in bodies]


@pytest.fixture(scope="module")
def theirs():
    """all-MiniLM-L6-v2 in sentence-transformers."""
    return sentence_transformers.SentenceTransformer(
        str(minilm_folder()), device="cpu", local_files_only=True
    )


@pytest.fixture(scope="module")
def embed(theirs):
    """Vectors of sentence-transformers, cut at a number of tokens; the same texts are embedded
    once."""
    known = {}

    def embed(texts, tokens):
        key = (*texts, tokens)
        if key not in known:
            theirs.max_seq_length = tokens
            known[key] = theirs.encode(texts, show_progress_bar=False)
        return known[key]

    return embed


@pytest.fixture
def named(minilm, tmp_path):
    """The sample of the index, compared with MiniLM."""

    def named():
        with opened(str(tmp_path)) as connection:
            seen = outline(connection, None)
            sample = draw(connection, seen, seen.vector(None), size=COUNT, seed=0)
        return sample.layout.writer, compare(minilm, sample, Wish(), None).match

    return named


def write_through_haystack(folder, abstracts, vectors):
    store = haystack_stores.QdrantDocumentStore(
        path=str(folder), index="docs", embedding_dim=384, progress_bar=False
    )
    store.write_documents(
        [
            haystack.Document(content=text, meta={"title": title}, embedding=vector.tolist())
            for (title, text), vector in zip(abstracts, vectors, strict=True)
        ]
    )
    store.close()


@pytest.mark.parametrize(
    ("in_front", "tokens", "fields", "separators"),
    [
        ("", 256, (), ()),
        ("\n", 256, ("title",), ("\n", " ", "\n\n")),
        ("", 128, (), ()),
    ],
)
def test_a_collection_of_sentence_transformers_through_qdrant_haystack_is_named(
    abstracts, embed, named, tmp_path, in_front, tokens, fields, separators
):
    texts = [title + in_front + text if in_front else text for title, text in abstracts]
    write_through_haystack(tmp_path, abstracts, embed(texts, tokens))
    writer, match = named()
    assert writer == "qdrant-haystack"
    assert match.named
    assert match.same == COUNT
    assert match.cosines.min() > 0.99999
    assert (match.variant.fields, match.separators) == (fields, separators)
    assert match.variant.tokens == tokens
    assert match.limits == ((128,) if tokens == 128 else (256, 384, 512))


def test_a_collection_of_langchain_qdrant_is_named(abstracts, embed, named, tmp_path):
    class Embeddings(embeddings.Embeddings):
        def embed_documents(self, texts):
            return embed(texts, 256).tolist()

        def embed_query(self, text):
            return self.embed_documents([text])[0]

    client = QdrantClient(path=str(tmp_path))
    size = models.VectorParams(size=384, distance=models.Distance.COSINE)
    client.create_collection("docs", vectors_config=size)
    store = langchain_qdrant.QdrantVectorStore(client, "docs", Embeddings())
    store.add_texts([text for _, text in abstracts], [{"title": title} for title, _ in abstracts])
    client.close()
    writer, match = named()
    assert writer == "langchain-qdrant"
    assert (match.named, match.variant.fields, match.variant.tokens) == (True, (), 256)


def test_a_foreign_collection_is_not_named(abstracts, embed, named, tmp_path):
    vectors = turned(embed([text for _, text in abstracts], 256))
    write_through_haystack(tmp_path, abstracts, vectors)
    _, match = named()
    assert not match.named
    assert abs(match.median) < 0.3
