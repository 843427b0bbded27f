"""E2RankDocumentEmbedder: documents with their vectors, ready to be written."""

# First, since it says which extra is missing where Haystack is.
from haystack_integrations.components.rankers.e2rank import _backend  # isort: skip

import asyncio
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from haystack import Document, component, default_from_dict
from haystack.utils import ComponentDevice

from e2rank_rag.models.folders import model_name
from e2rank_rag.models.shipped import DEFAULT_MODEL

if TYPE_CHECKING:
    from haystack.components.embedders.types import DocumentEmbedder


@component
class E2RankDocumentEmbedder(_backend.Configured):
    """Embeds documents. The vectors serve retrieval and, later, reranking.

    ```python
    from haystack import Document
    from haystack_integrations.components.embedders.e2rank import E2RankDocumentEmbedder

    embedder = E2RankDocumentEmbedder(model="e2rank-minilm", meta_fields_to_embed=["title"])
    embedded = embedder.run([Document(content="...", meta={"title": "Eiger"})])["documents"]
    ```
    """

    def __init__(
        self,
        *,
        model: str | Path = DEFAULT_MODEL,
        meta_fields_to_embed: list[str] | None = None,
        embedding_separator: str = "\n",
        prefix: str = "",
        suffix: str = "",
        progress_bar: bool = True,
        device: ComponentDevice | None = None,
        dtype: Literal["float32", "bfloat16", "float16"] | None = None,
        encoder_kwargs: dict[str, Any] | None = None,
    ) -> None:
        """Nothing is loaded before the first run, or `warm_up`.

        model: "e2rank-minilm", a model folder or a hub id; its own document prompt is applied.
        meta_fields_to_embed: put before the content, joined by `embedding_separator`; give the same
            to the ranker or retriever that reuses the vectors.
        prefix, suffix: put around that text.
        progress_bar: show one for long calls on a terminal.
        device: None takes CUDA where there is one, else the CPU, on the machine that runs it.
        encoder_kwargs: further arguments of `e2rank_rag.Encoder.from_pretrained`, such as revision,
            max_length, truncate_dim.
        """
        self.model = model_name(model)
        self.meta_fields_to_embed = list(meta_fields_to_embed or [])
        self.embedding_separator = embedding_separator
        self.prefix = prefix
        self.suffix = suffix
        self.progress_bar = progress_bar
        self.device = device
        self.dtype = dtype
        self.encoder_kwargs = encoder_kwargs
        self._text = _backend.DocumentText(
            self.meta_fields_to_embed, embedding_separator, prefix, suffix
        )
        self._encoder = _backend.LazyEncoder(
            self.model, device=device, dtype=dtype, options=encoder_kwargs
        )

    def to_dict(self) -> dict[str, Any]:
        """For YAML; the device stays open where none was given."""
        return _backend.to_dict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "E2RankDocumentEmbedder":
        """From `to_dict`."""
        return default_from_dict(cls, data)

    def warm_up(self) -> None:
        """Load the model; does nothing when it is there."""
        self._encoder.open()

    async def warm_up_async(self) -> None:
        """`warm_up` without blocking the event loop."""
        await self._encoder.aopen()

    def close(self) -> None:
        """Free the model unless another component uses it; the next run opens it again."""
        self._encoder.close()

    async def close_async(self) -> None:
        """`close` without blocking the event loop."""
        await asyncio.to_thread(self.close)

    @component.output_types(documents=list[Document])
    def run(self, documents: list[Document]) -> dict[str, list[Document]]:
        """New documents with their unit vectors, in the order they came.

        TypeError for anything but a list of documents. Over-long texts are cut at the model's
        length, and a warning says how many.
        """
        _check(documents)
        return self._embedded(documents)

    @component.output_types(documents=list[Document])
    async def run_async(self, documents: list[Document]) -> dict[str, list[Document]]:
        """`run` without blocking the event loop."""
        _check(documents)
        if not documents:
            return {"documents": []}
        return await self._encoder.run_async(partial(self._embedded, documents))

    def _embedded(self, documents: list[Document]) -> dict[str, list[Document]]:
        if not documents:
            return {"documents": []}
        vectors = self._encoder.encode_documents(
            [self._text.of(document.content, document.meta) for document in documents],
            progress=None if self.progress_bar else False,
        )
        return {
            "documents": [
                replace(document, embedding=vector)
                for document, vector in zip(documents, vectors.tolist(), strict=True)
            ]
        }


def _check(documents: list[Document]) -> None:
    if isinstance(documents, list) and all(isinstance(item, Document) for item in documents):
        return
    raise TypeError(
        "E2RankDocumentEmbedder expects a list of Documents as input, got "
        f"{type(documents).__name__}; for a query there is E2RankTextEmbedder"
    )


if TYPE_CHECKING:
    _fits: type[DocumentEmbedder] = E2RankDocumentEmbedder
