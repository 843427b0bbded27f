"""What the components share: which model, documents there and back, and events."""

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
from pydantic import AfterValidator, BaseModel, ConfigDict, PrivateAttr

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


class Checked(BaseModel):
    """A field that is assigned, or changed in a copy, is checked as at construction, and used.

    What a component has opened is kept in `Kept`s, by the values of the fields that it was opened
    with. A copy opens for itself, so that closing one leaves the other open.
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
        """As pydantic's `__init__` does it: that of a subclass may take other arguments."""
        given = {name: getattr(self, name) for name in self.model_fields_set}
        made = type(self).__new__(type(self))
        self.__pydantic_validator__.validate_python({**given, **changes}, self_instance=made)
        return made


class E2RankModel(Checked):
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

    _opened: Kept[Any] = PrivateAttr(default_factory=partial(Kept, closes=True))

    def stated(self) -> dict[str, Any]:
        """What was said of the model, by the names of the fields above; what is None was not."""
        values = {name: getattr(self, name) for name in E2RankModel.model_fields}
        return {name: value for name, value in values.items() if value is not None}

    @property
    def encoder(self) -> Encoder:
        """The opened model; this takes seconds the first time."""
        stated = self.stated()
        opened: Encoder = self._opened.get(stated, lambda: _open(stated))
        return opened

    async def aencoder(self) -> Encoder:
        """The same; the event loop goes on while the model is opened."""
        return await asyncio.to_thread(lambda: self.encoder)

    def close(self) -> None:
        """Free the model, unless other components use it. A later call opens it again."""
        self._opened.clear()


def _open(stated: Mapping[str, Any]) -> Encoder:
    # Within the opening, for which a fork waits: torch is imported here.
    from e2rank_rag.models.encoder import Encoder

    return Encoder.from_pretrained(**stated)


def as_document(document: types.Document) -> Document:
    """As LangChain has it, with its id."""
    return Document(id=document.id, page_content=document.text, metadata=dict(document.meta))


def as_ranking(hits: Sequence[types.Hit], key: str | None) -> list[Document]:
    """Reranked hits as LangChain has them, each with its score under `key` and the one before."""
    found = [as_document(hit.document) for hit in hits]
    if key is not None:
        for document, hit in zip(found, hits, strict=True):
            document.metadata |= {EARLIER_SCORE: hit.retrieval_score, key: hit.score}
    return found


def scored(document: Document, score: float, key: str | None) -> Document:
    """A copy with its score in the metadata; the score of an earlier reranker is kept beside it.

    key: in the metadata; None leaves the metadata as it is.
    """
    metadata = dict(document.metadata)
    if key is not None:
        metadata[key] = float(score)
        if key in document.metadata:
            metadata[EARLIER_SCORE] = document.metadata[key]
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
