"""E2RankDocumentEmbedder: documents with their vectors, ready to be written."""

from dataclasses import KW_ONLY, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from haystack import Document, component
from haystack.dataclasses import SparseEmbedding
from haystack.utils import ComponentDevice
from haystack_integrations.common.e2rank.component import E2RankComponent
from haystack_integrations.common.e2rank.documents import DocumentText

from e2rank_rag.models.shipped import DEFAULT_MODEL
from e2rank_rag.types import TextEncoder
from e2rank_rag.words import Bm25

if TYPE_CHECKING:
    from haystack.components.embedders.types import DocumentEmbedder


@component
@dataclass(eq=False, repr=False)
class E2RankDocumentEmbedder(E2RankComponent):
    """Embeds documents. The vectors serve retrieval and, later, reranking.

    ```python
    from haystack import Document
    from haystack_integrations.components.embedders.e2rank import E2RankDocumentEmbedder

    embedder = E2RankDocumentEmbedder(model="e2rank-minilm", meta_fields_to_embed=["title"])
    embedded = embedder.run([Document(content="...", meta={"title": "Eiger"})])["documents"]
    ```

    The model is loaded at the first run, or by `warm_up`.

    :param model: "e2rank-minilm", a model folder or a hub id. Its own document prompt applies.
    :param meta_fields_to_embed: meta fields that go before the content. Give the same ones to the
        ranker or retriever that reuses the vectors.
    :param embedding_separator: stands between these fields and the content.
    :param bm25: fill `sparse_embedding` too, with the words of these fields and the content, for
        hybrid search in a QdrantDocumentStore with use_sparse_embeddings=True and sparse_idf=True.
        `Bm25()` is the model "Qdrant/bm25" of fastembed. A dict of its settings will do, as in
        YAML.
    :param prefix: text before all of that.
    :param suffix: text after all of that.
    :param progress_bar: show one for long calls on a terminal.
    :param device: None takes CUDA where there is one, else the CPU, on the machine that runs it.
    :param dtype: None takes bfloat16 on CUDA, float32 on the CPU; "auto" takes bfloat16 on a CPU
        too, if it computes in it.
    :param encoder_kwargs: further arguments of `e2rank_rag.Encoder.from_pretrained`, such as
        revision, max_length, truncate_dim.
    """

    _: KW_ONLY
    model: str | Path = DEFAULT_MODEL
    meta_fields_to_embed: list[str] | None = None
    embedding_separator: str = "\n"
    bm25: Bm25 | dict[str, Any] | None = None
    prefix: str = ""
    suffix: str = ""
    progress_bar: bool = True
    device: ComponentDevice | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] | None = None
    encoder_kwargs: dict[str, Any] | None = None

    @component.output_types(documents=list[Document])
    def run(self, documents: list[Document]) -> dict[str, list[Document]]:
        """Embed documents.

        Texts over the model's length are cut, and a warning says how many.

        :param documents: the documents; they are not changed.
        :returns: `documents`, new ones with their unit vectors, in the same order. With `bm25`, a
            document without words has an empty `sparse_embedding`.
        :raises TypeError: for anything but a list of documents.
        """
        _check(documents)
        return self._embedded(self._open_encoder(), documents) if documents else {"documents": []}

    @component.output_types(documents=list[Document])
    async def run_async(self, documents: list[Document]) -> dict[str, list[Document]]:
        """`run` without blocking the event loop."""
        _check(documents)
        if not documents:
            return {"documents": []}
        encoder = await self._aopen_encoder()
        return await encoder.run_async(partial(self._embedded, encoder, documents))

    def _embedded(
        self, encoder: TextEncoder, documents: list[Document]
    ) -> dict[str, list[Document]]:
        text = DocumentText(
            tuple(self.meta_fields_to_embed or ()),
            self.embedding_separator,
            self.prefix,
            self.suffix,
        )
        vectors = encoder.encode_documents(
            [text.of(document.content, document.meta) for document in documents],
            progress=None if self.progress_bar else False,
        )
        embedded = [
            replace(document, embedding=vector)
            for document, vector in zip(documents, vectors.tolist(), strict=True)
        ]
        return {"documents": embedded if self.bm25 is None else self._with_words(embedded)}

    def _with_words(self, documents: list[Document]) -> list[Document]:
        # Prefix and suffix are instructions to the model: every document has their words.
        text = DocumentText(tuple(self.meta_fields_to_embed or ()), self.embedding_separator)
        words = Bm25.model_validate(self.bm25).documents(
            [text.of(document.content, document.meta) for document in documents]
        )
        return [
            replace(document, sparse_embedding=SparseEmbedding(*vector))
            for document, vector in zip(documents, words, strict=True)
        ]


def _check(documents: list[Document]) -> None:
    if isinstance(documents, list) and all(isinstance(item, Document) for item in documents):
        return
    raise TypeError(
        "E2RankDocumentEmbedder expects a list of Documents as input, got "
        f"{type(documents).__name__}; for a query there is E2RankTextEmbedder"
    )


if TYPE_CHECKING:
    _fits: type[DocumentEmbedder] = E2RankDocumentEmbedder
