"""What the components share: which model, documents there and back, and events."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

from langchain_core.callbacks import Callbacks, adispatch_custom_event, dispatch_custom_event
from langchain_core.documents import Document
from langchain_core.runnables.config import (
    RunnableConfig,
    ensure_config,
)
from pydantic import AfterValidator, BaseModel, ConfigDict, PrivateAttr

from e2rank_rag import types
from e2rank_rag.models.minilm import DEFAULT_MODEL
from e2rank_rag.models.names import model_name
from e2rank_rag.prompts import Prompts, Task
from e2rank_rag.recipe import Pooling

if TYPE_CHECKING:
    from e2rank_rag.models.encoder import Encoder

SCORE = "relevance_score"
EARLIER_SCORE = "retrieval_score"

opening = threading.Lock()
"""Held while a model is opened or given back: two threads of a component would open it twice."""


class E2RankModel(BaseModel):
    """Which model, and how it is opened: at first use, by `Encoder.from_pretrained`.

    All components that name the same weights, dtype and device share one model in memory.

    model: the `Path` of a model folder; or as a string a folder, a hub id, "minilm"
        (all-MiniLM-L6-v2, from the `minilm` extra), or
        "e2rank-minilm", which has a listwise adapter beside it.
    task: the instruction of causal models, by name or as a `Task`.
    device, dtype: None takes CUDA where there is one, with bfloat16, else the CPU with float32.
    max_length: limit for queries and documents, in tokens.
    pooling, prompts: only where the model's folder does not say.
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    model: Annotated[str | Path, AfterValidator(model_name)] = DEFAULT_MODEL
    task: Task | str | None = None
    device: str | None = None
    dtype: str | None = None
    max_length: int | None = None
    truncate_dim: int | None = None
    pooling: Pooling | None = None
    prompts: Prompts | str | None = None
    attn_implementation: str | None = None
    revision: str | None = None
    local_files_only: bool = False

    _encoder: Any = PrivateAttr(default=None)

    def stated(self) -> dict[str, Any]:
        """What was said of the model, by the names of the fields above; what is None was not."""
        values = {name: getattr(self, name) for name in E2RankModel.model_fields}
        return {name: value for name, value in values.items() if value is not None}

    @property
    def encoder(self) -> Encoder:
        """The opened model; this takes seconds the first time."""
        from e2rank_rag.models.encoder import Encoder

        opened: Encoder | None = self._encoder
        if opened is not None:
            return opened
        with opening:
            opened = self._encoder  # another thread may have been faster
            if opened is None:
                opened = Encoder.from_pretrained(**self.stated())
                self._encoder = opened
            return opened

    def __copy__(self) -> Self:
        """A copy opens the model for itself, so that closing one leaves the other open."""
        copied = super().__copy__()
        copied._encoder = None
        return copied

    async def aencoder(self) -> Encoder:
        """The same; the event loop goes on while the model is opened."""
        opened: Encoder | None = self._encoder
        return opened or await asyncio.to_thread(lambda: self.encoder)

    def close(self) -> None:
        """Free the model, unless other components use it. A later call opens it again."""
        with opening:
            encoder, self._encoder = self._encoder, None
        if encoder is not None:
            encoder.close()


def as_document(document: types.Document) -> Document:
    """As LangChain has it, with its id."""
    return Document(id=document.id, page_content=document.text, metadata=dict(document.meta))


def as_ranking(hits: Sequence[types.Hit]) -> list[Document]:
    """Reranked hits as LangChain has them, each with its score and the one before."""
    return [
        Document(
            id=hit.document.id,
            page_content=hit.document.text,
            metadata={
                **hit.document.meta,
                EARLIER_SCORE: hit.retrieval_score,
                SCORE: hit.score,
            },
        )
        for hit in hits
    ]


def scored(document: Document, score: float) -> Document:
    """A copy with its score in the metadata; the score of an earlier reranker is kept beside it."""
    metadata = {**document.metadata, SCORE: float(score)}
    if SCORE in document.metadata:
        metadata[EARLIER_SCORE] = document.metadata[SCORE]
    return document.model_copy(update={"metadata": metadata})


def tell(name: str, data: Mapping[str, Any], callbacks: Callbacks) -> None:
    """A custom event of the run that this is part of; without one, nobody could see it."""
    config: RunnableConfig = {"callbacks": callbacks}
    if _has_parent_run(config):
        dispatch_custom_event(name, dict(data), config=config)


async def atell(name: str, data: Mapping[str, Any], callbacks: Callbacks) -> None:
    """As `tell`."""
    config: RunnableConfig = {"callbacks": callbacks}
    if _has_parent_run(config):
        await adispatch_custom_event(name, dict(data), config=config)


def _has_parent_run(config: RunnableConfig) -> bool:
    callbacks = ensure_config(config).get("callbacks")
    if callbacks is None or isinstance(callbacks, list):
        return False
    return callbacks.parent_run_id is not None
