"""The parts that the components share: the fields of a model, conversion, and events."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

from langchain_core.callbacks import Callbacks, adispatch_custom_event, dispatch_custom_event
from langchain_core.documents import Document
from langchain_core.runnables.config import (
    RunnableConfig,
    ensure_config,
)
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PrivateAttr

from e2rank_rag import types
from e2rank_rag.locks import Kept
from e2rank_rag.models.folders import model_name
from e2rank_rag.models.shipped import DEFAULT_MODEL
from e2rank_rag.prompts import Prompts, Task
from e2rank_rag.recipe import Pooling

if TYPE_CHECKING:
    from e2rank_rag.models.encoder import Encoder

SCORE = "relevance_score"
EARLIER_SCORE = "retrieval_score"
EXPLANATION = "explanation"


class Checked(BaseModel):
    """Fields that are checked when they are assigned, or changed in a copy, and then used.

    A component keeps an open model in a `Kept` with the field values that it was opened with, so
    other values open another model. A copy opens its own, and closing it leaves the first open.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if name in type(self).model_fields:
            value = getattr(self._with({name: value}), name)
        super().__setattr__(name, value)

    def __copy__(self) -> Self:
        copied = super().__copy__()
        private = copied.__pydantic_private__ or {}
        private.update({k: copy.copy(v) for k, v in private.items() if isinstance(v, Kept)})
        return copied

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy, with other values of some fields."""
        copied = super().model_copy(deep=deep)
        if update:
            changed = copied._with(update)
            for part in ("__dict__", "__pydantic_fields_set__", "__pydantic_extra__"):
                object.__setattr__(copied, part, getattr(changed, part))
        return copied

    def _with(self, changes: Mapping[str, Any]) -> Self:
        """A new object by pydantic's validator: a subclass may have another `__init__`."""
        given = {name: getattr(self, name) for name in self.model_fields_set}
        made = type(self).__new__(type(self))
        self.__pydantic_validator__.validate_python({**given, **changes}, self_instance=made)
        return made


class E2RankModel(Checked):
    """The model of a component. The first call opens it, with `Encoder.from_pretrained`.

    Components with the same weights, dtype and device share one model in memory.

    model: a model folder, a hub id, "minilm" (all-MiniLM-L6-v2, from the `minilm` extra), or
        "e2rank-minilm" (the same with a listwise adapter). A `Path` is always a folder.
    task: the instruction of causal models, by name or as a `Task`.
    device, dtype: None means CUDA with bfloat16 if there is one, else the CPU with float32. "auto"
        takes bfloat16 on a CPU too, if it computes in it.
    threads: how many threads compute on the CPU; None takes what the process may use.
    max_length: limit for queries and documents, in tokens.
    pooling, prompts: for a model folder that does not contain them.
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    model: Annotated[str | Path, AfterValidator(model_name)] = DEFAULT_MODEL
    task: Task | str | None = None
    device: str | None = None
    dtype: str | None = None
    threads: Annotated[int, Field(ge=1)] | None = None
    max_length: int | None = None
    truncate_dim: int | None = None
    pooling: Pooling | None = None
    prompts: Prompts | str | None = None
    attn_implementation: str | None = None
    revision: str | None = None
    local_files_only: bool = False

    _opened: Kept[Any] = PrivateAttr(default_factory=partial(Kept, closes=True))

    def stated(self) -> dict[str, Any]:
        """The fields above that are not None, by name: arguments of `Encoder.from_pretrained`."""
        values = {name: getattr(self, name) for name in E2RankModel.model_fields}
        return {name: value for name, value in values.items() if value is not None}

    @property
    def encoder(self) -> Encoder:
        """The open model; the first call takes seconds."""
        return self.encoder_of(self.stated())

    def encoder_of(self, stated: Mapping[str, Any]) -> Encoder:
        """The encoder with these values of the fields, opened unless it was the last one."""
        opened: Encoder = self._opened.get(stated, lambda: _open(stated))
        return opened

    async def aencoder(self) -> Encoder:
        """`encoder` without blocking the event loop."""
        return await asyncio.to_thread(lambda: self.encoder)

    def close(self) -> None:
        """Free the model, unless other components use it. A later call opens it again."""
        self._opened.clear()


def _open(stated: Mapping[str, Any]) -> Encoder:
    # Imports torch, so it belongs to the opening: a fork waits for that to end.
    from e2rank_rag.models.encoder import Encoder

    return Encoder.from_pretrained(**stated)


def as_document(document: types.Document) -> Document:
    """A LangChain document with the same id, text and metadata."""
    return Document(id=document.id, page_content=document.text, metadata=dict(document.meta))


def as_ranking(hits: Sequence[types.Hit], key: str | None) -> list[Document]:
    """Reranked hits as LangChain documents, with their score under `key` and the earlier score."""
    ranked = [as_document(hit.document) for hit in hits]
    for document, hit in zip(ranked, hits, strict=True):
        if key is not None:
            document.metadata |= {EARLIER_SCORE: hit.retrieval_score, key: hit.score}
        document.metadata |= _explained(hit)
    return ranked


def scored(document: Document, hit: types.Hit, key: str | None) -> Document:
    """A copy with its score in the metadata, beside the score of an earlier reranker.

    key: the metadata key of the score; None adds no score.
    """
    metadata = dict(document.metadata)
    if key is not None:
        metadata[key] = hit.score
        if key in document.metadata:
            metadata[EARLIER_SCORE] = document.metadata[key]
    return document.model_copy(update={"metadata": metadata | _explained(hit)})


def _explained(hit: types.Hit) -> dict[str, Any]:
    return {} if hit.explanation is None else {EXPLANATION: hit.explanation.as_dict()}


def tell(name: str, data: Mapping[str, Any], callbacks: Callbacks) -> None:
    """Dispatch a custom event to the run that the call is part of. Without a run, no event."""
    config: RunnableConfig = {"callbacks": callbacks}
    if _has_parent_run(config):
        dispatch_custom_event(name, dict(data), config=config)


async def atell(name: str, data: Mapping[str, Any], callbacks: Callbacks) -> None:
    """`tell` for async callbacks."""
    config: RunnableConfig = {"callbacks": callbacks}
    if _has_parent_run(config):
        await adispatch_custom_event(name, dict(data), config=config)


def _has_parent_run(config: RunnableConfig) -> bool:
    callbacks = ensure_config(config).get("callbacks")
    if callbacks is None or isinstance(callbacks, list):
        return False
    return callbacks.parent_run_id is not None
