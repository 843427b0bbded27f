"""The life cycle of a component: opening, closing, YAML, copies and pickles."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Self

from haystack import default_from_dict, default_to_dict
from haystack.utils import ComponentDevice
from haystack_integrations.common.e2rank.documents import DocumentText
from haystack_integrations.common.e2rank.serialisation import (
    check_names,
    in_pickle,
    plain,
    written,
)
from haystack_integrations.common.e2rank.stores import StoreReader, check_store, reader_of

from e2rank_rag.evidence import Evidence
from e2rank_rag.locks import Kept
from e2rank_rag.models.folders import model_name
from e2rank_rag.prompts import Prompts, Task
from e2rank_rag.rerankers import BaseReranker, load_reranker
from e2rank_rag.rerankers.listwise import check_listwise
from e2rank_rag.vectors import check_policy
from e2rank_rag.words import Bm25

if TYPE_CHECKING:
    from e2rank_rag.models.encoder import Encoder

# Haystack sets the first when the construction is over, the others when it connects a component.
PIPELINE = "__haystack_added_to_pipeline__"
PLACE = (PIPELINE, "__haystack_input__", "__haystack_output__")
# What `encoder_kwargs` may name, for a model of any system. Known before a model is opened, since
# a setting that none takes, such as a token, would get into YAML.
MODEL_ARGUMENTS = (
    "attn_implementation",
    "local_files_only",
    "max_length",
    "pooling",
    "prompts",
    "revision",
    "score_token",
    "structure",
    "task",
    "threads",
    "truncate_dim",
)


class E2RankComponent:
    """A component that opens what it needs at first use, and again after `close`.

    Each component is a dataclass: its fields are the parameters of `__init__`. An argument that is
    assigned later is used as if it had been given at construction. Arguments that only fit together
    may be assigned one after the other: the next run needs them to fit.

    A copy and a pickle hold the arguments only: they open their own models, and belong to no
    pipeline unless the pipeline is copied with them. Copies share the document store, because
    nobody else could open one in memory. A pickle holds what YAML holds, and is refused for the
    same settings, and for a store in memory, whose documents would stay behind.
    """

    model: Any
    device: ComponentDevice | None
    dtype: str | None
    encoder_kwargs: dict[str, Any] | None

    def __post_init__(self) -> None:
        self._encoder: Kept[Encoder] = Kept(closes=True)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, self._checked(name, value))

    def _checked(self, name: str, value: Any) -> Any:
        """An argument as the component keeps it; ValueError for a value that it cannot have."""
        match name:
            case "model":
                return model_name(value)
            case "encoder_kwargs":
                check_names(name, value or {}, MODEL_ARGUMENTS)
            case "bm25" if value is not None:
                return Bm25.model_validate(value)
            case "meta_fields_to_embed":
                return list(value or [])
        return value

    # What is opened

    def warm_up(self) -> None:
        """Load the models; does nothing when they are loaded."""
        self._open_encoder()

    async def warm_up_async(self) -> None:
        """`warm_up` without blocking the event loop."""
        await asyncio.to_thread(self.warm_up)

    def close(self) -> None:
        """Free the models, unless another component uses them; the next run opens them again."""
        self._encoder.clear()

    async def close_async(self) -> None:
        """`close` without blocking the event loop."""
        await asyncio.to_thread(self.close)

    def _open_encoder(self) -> Encoder:
        arguments = self._model_arguments(self.encoder_kwargs)

        def load() -> Encoder:
            from e2rank_rag.models.encoder import Encoder

            return Encoder.from_pretrained(self.model, **arguments)

        return self._encoder.get((self.model, arguments), load)

    async def _aopen_encoder(self) -> Encoder:
        return await asyncio.to_thread(self._open_encoder)

    def _model_arguments(self, options: Mapping[str, Any] | None) -> dict[str, Any]:
        return {
            "device": None if self.device is None else self.device.to_torch_str(),
            "dtype": self.dtype,
            **{name: _record(name, value) for name, value in (options or {}).items()},
        }

    # YAML, copies and pickles

    def to_dict(self) -> dict[str, Any]:
        """The component as YAML holds it; an open `device` stays open.

        :raises ValueError: for a setting that YAML cannot hold, or that may be a secret.
        """
        arguments = self._arguments()
        if arguments.get("document_store") is not None:
            arguments["document_store"] = written(arguments["document_store"])
        return default_to_dict(
            self,
            **{
                name: value if isinstance(value, ComponentDevice) else plain(value, name)
                for name, value in arguments.items()
            },
        )

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """The component that `to_dict` wrote."""
        return default_from_dict(cls, data)

    def __copy__(self) -> Self:
        return type(self)(**self._arguments())

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        arguments = {
            name: value if name == "document_store" else copy.deepcopy(value, memo)
            for name, value in self._arguments().items()
        }
        copied = memo[id(self)] = type(self)(**arguments)
        # The pipeline itself is in `memo` where it is what is being copied.
        if id(getattr(self, PIPELINE)) in memo:
            vars(copied).update({name: copy.deepcopy(getattr(self, name), memo) for name in PLACE})
        return copied

    def __reduce__(self) -> tuple[Any, ...]:
        data = self.to_dict()
        store = data["init_parameters"].pop("document_store", None)
        if store is not None:
            store = in_pickle(vars(self)["document_store"], store)
        return _restored, (type(self), data, store), {name: vars(self)[name] for name in PLACE}

    def _arguments(self) -> dict[str, Any]:
        """The arguments of the component's construction."""
        return {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]


class RerankingComponent(E2RankComponent):
    """A component with a reranker and, if one is given, a document store."""

    document_store: Any
    system: Any
    top_k: int
    prompt_depth: int | None
    query_weight: float | None
    evidence: Any
    stored_vectors: Any
    meta_fields_to_embed: list[str] | None
    embedding_separator: str
    document_prefix: str
    document_suffix: str

    def __post_init__(self) -> None:
        super().__post_init__()
        self._reranker: Kept[BaseReranker] = Kept(closes=True)
        self._reader: Kept[StoreReader] = Kept()

    def _checked(self, name: str, value: Any) -> Any:
        match name:
            case "top_k":
                check_top_k(value)
            case "prompt_depth" | "query_weight":
                check_listwise(**{name: value})
            case "evidence" if value is not None and value is not False:
                return Evidence.model_validate(value)
            case "stored_vectors":
                check_policy(value)
            case "document_store" if value is not None:
                check_store(value)
        return super()._checked(name, value)

    def close(self) -> None:
        """Free the models, and the store's connection; the next run opens them again."""
        self._close_models()
        if self._reader.known is not None:
            self._reader.known.close()

    async def close_async(self) -> None:
        """`close` without blocking the event loop."""
        await asyncio.to_thread(self._close_models)
        if self._reader.known is not None:
            await self._reader.known.aclose()

    def _close_models(self) -> None:
        self._encoder.clear()
        self._reranker.clear()

    def _open_reranker(self, model: str, options: Mapping[str, Any] | None) -> BaseReranker:
        arguments = {
            "system": self.system,
            "stored_vectors": self.stored_vectors,
            "listwise": self._listwise(),
            **self._model_arguments(options),
        }
        return self._reranker.get((model, arguments), lambda: load_reranker(model, **arguments))

    def _listwise(self) -> dict[str, Any]:
        return {
            "prompt_depth": self.prompt_depth,
            "query_weight": self.query_weight,
            "evidence": self.evidence,
        }

    def _store(self) -> StoreReader:
        given, text, bm25 = self.document_store, self._text(), self._bm25()
        return self._reader.get((given, text, bm25), lambda: reader_of(given, text, bm25))

    def _bm25(self) -> Bm25 | None:
        """What the sparse vectors of a QdrantDocumentStore hold; None if they are not read."""
        return None

    def _text(self) -> DocumentText:
        return DocumentText(
            tuple(self.meta_fields_to_embed or ()),
            self.embedding_separator,
            self.document_prefix,
            self.document_suffix,
        )


def check_top_k(top_k: int | None) -> None:
    """ValueError unless `top_k` is positive, or None for "as at construction"."""
    if top_k is not None and top_k <= 0:
        raise ValueError(f"top_k must be > 0, but got {top_k}")


def _restored(kind: Any, data: dict[str, Any], store: Any) -> Any:
    given = {} if store is None else {"document_store": store}
    return kind.from_dict({**data, "init_parameters": {**data["init_parameters"], **given}})


def _record(name: str, value: Any) -> Any:
    """An argument of the model; YAML holds a record as its fields."""
    record = {"task": Task, "prompts": Prompts}.get(name)
    return value if record is None or not isinstance(value, Mapping) else record(**value)
