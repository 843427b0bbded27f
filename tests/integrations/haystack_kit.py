"""What the tests of the Haystack components share."""

from __future__ import annotations

from haystack import Document
from haystack_integrations.document_stores.qdrant import QdrantDocumentStore

from e2rank_rag.models.encoder import Encoder

TEXTS = [
    "cats purr and sleep on the stove",
    "dogs bark and dig",
    "the ferry crosses the strait four times a day",
    "the oldest bridge was built in 1387 and carries trams",
    "bread rises because yeast turns sugar into carbon dioxide",
    "a prime number has no divisors but one and itself",
    "glaciers move downhill under their own weight",
    "hold the button for ten seconds until the light blinks",
    "cats sleep, dogs bark again",
    "the train departs at six from the bridge",
    "salt slows the yeast down",
    "wind stops the ferry",
]
QUERY = "when do cats sleep?"


def documents(texts=TEXTS, **fields):
    """Named d0, d1, ..., with their number as meta."""
    return [
        Document(id=f"d{number}", content=text, meta={"number": number}, **fields)
        for number, text in enumerate(texts)
    ]


def memory_store(dim, embedded=(), **options):
    """Haystack's store over Qdrant in memory."""
    store = QdrantDocumentStore(
        ":memory:", index="docs", embedding_dim=dim, progress_bar=False, **options
    )
    if embedded:
        store.write_documents(list(embedded))
    return store


def folder_store(folder, index="docs", **options):
    """Haystack's store over a Qdrant folder, for the vectors of the tiny model."""
    return QdrantDocumentStore(
        path=str(folder), index=index, embedding_dim=32, progress_bar=False, **options
    )


def encoder_of(component):
    """The encoder that a component opens."""
    ours = component._open().encoder if hasattr(component, "_open") else None
    return component._open_encoder() if ours is None else ours


def ids(answer):
    return [document.id for document in answer["documents"]]


def scores(answer):
    return [document.score for document in answer["documents"]]


def alike(answer, other):
    """The same but for the last digits, which vary with where numbers happen to lie in memory."""
    return _same(_plain(answer), _plain(other))


def _plain(value):
    if isinstance(value, Document):
        return _plain(value.to_dict(flatten=False))
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _same(one, other):
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return abs(one - other) < 1e-5
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[k], other[k]) for k in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return one == other


class Encoded:
    """What any encoder was asked for while this is in place."""

    def __init__(self, monkeypatch) -> None:
        self.documents: list[str] = []
        self.queries: list[str] = []
        self.prompts: list[tuple[str, list[str]]] = []
        self.progress: list[bool | None] = []
        encode_documents = Encoder.encode_documents
        encode_queries = Encoder.encode_queries
        encode_listwise = Encoder.encode_listwise

        def documents(encoder, texts, **options):
            self.documents += texts
            self.progress.append(options.get("progress"))
            return encode_documents(encoder, texts, **options)

        def queries(encoder, texts, **options):
            self.queries += texts
            return encode_queries(encoder, texts, **options)

        def listwise(encoder, texts, candidates, **options):
            self.prompts += zip(texts, map(list, candidates), strict=True)
            return encode_listwise(encoder, texts, candidates, **options)

        monkeypatch.setattr(Encoder, "encode_documents", documents)
        monkeypatch.setattr(Encoder, "encode_queries", queries)
        monkeypatch.setattr(Encoder, "encode_listwise", listwise)
