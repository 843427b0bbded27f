"""What the components share: models that open at first use, the text of a document, YAML."""

from __future__ import annotations

import asyncio
import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from haystack import default_to_dict
from haystack.utils import ComponentDevice
from haystack_integrations.components.rankers.e2rank._written_stores import (
    in_pickle,
    refuse_unknown,
)
from pydantic import BaseModel

from e2rank_rag.feedback import Feedback
from e2rank_rag.locks import Lock, opening
from e2rank_rag.models.folders import System, model_name, system_of
from e2rank_rag.prompts import Prompts, Task
from e2rank_rag.rerankers import BaseReranker, ListwiseReranker, RerankReport, load_reranker
from e2rank_rag.types import Cut, Embeddings, Hit, ListwiseEncoding, TextEncoder
from e2rank_rag.vectors import StoredVectors, VectorCounts

if TYPE_CHECKING:
    from e2rank_rag.models.encoder import Encoder

T = TypeVar("T")

# Where Haystack keeps the pipeline of a component, and its connections in it.
PIPELINE = "__haystack_added_to_pipeline__"
PLACE = (PIPELINE, "__haystack_input__", "__haystack_output__")
# The arguments that a model, a store and the text of a document are opened and made with; all
# others are read at each run.
MADE_OF = frozenset(
    {
        "model",
        "reranker",
        "system",
        "prompt_depth",
        "query_weight",
        "stored_vectors",
        "document_store",
        "meta_fields_to_embed",
        "embedding_separator",
        "document_prefix",
        "document_suffix",
        "prefix",
        "suffix",
        "device",
        "dtype",
        "encoder_kwargs",
    }
)
# What `encoder_kwargs` may name, of any of the three systems. Known here, since a setting that no
# model takes, such as a token, would be in YAML before a model is opened.
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
    "truncate_dim",
)


class LazyEncoder:
    """A `TextEncoder` that opens its model at first use, and again after `close`.

    All that name the same model, dtype and device share its weights and its one thread.
    options: further arguments of `Encoder.from_pretrained`; ValueError where no model has them.
    """

    def __init__(
        self,
        model: str,
        *,
        device: ComponentDevice | None,
        dtype: str | None,
        options: Mapping[str, Any] | None,
    ) -> None:
        self.name = model
        self._device = device
        self._dtype = dtype
        self._options = dict(options or {})
        refuse_unknown("encoder_kwargs", self._options, MODEL_ARGUMENTS)
        self._encoder: Encoder | None = None
        self._lock = Lock()

    def open(self) -> Encoder:
        """The encoder; its model is loaded by the first call."""
        with self._lock:
            if self._encoder is None:
                self._encoder = self._load()
            return self._encoder

    def _load(self) -> Encoder:
        with opening():
            from e2rank_rag.models.encoder import Encoder

            return Encoder.from_pretrained(self.name, **self.arguments())

    def arguments(self) -> dict[str, Any]:
        """What the model is opened with, beside its name."""
        return {
            "device": None if self._device is None else self._device.to_torch_str(),
            "dtype": self._dtype,
            **{name: _record(name, value) for name, value in self._options.items()},
        }

    async def aopen(self) -> Encoder:
        """`open` without blocking the event loop."""
        opened = self._encoder
        return opened if opened is not None else await asyncio.to_thread(self.open)

    def close(self) -> None:
        """Give the model back, after the calls that are running; the next use opens it again."""
        with self._lock:
            encoder, self._encoder = self._encoder, None
        if encoder is not None:
            encoder.close()

    @property
    def dim(self) -> int:
        return self.open().dim

    @property
    def fingerprint(self) -> str:
        return self.open().fingerprint

    @property
    def feedback(self) -> Feedback | None:
        return self.open().feedback

    def encode_queries(self, queries: Sequence[str]) -> Embeddings:
        return self.open().encode_queries(queries)

    def encode_documents(
        self,
        documents: Sequence[str],
        *,
        on_cut: Callable[[Cut], None] | None = None,
        progress: bool | None = None,
    ) -> Embeddings:
        return self.open().encode_documents(documents, on_cut=on_cut, progress=progress)

    def encode_listwise(
        self,
        queries: Sequence[str],
        candidates: Sequence[Sequence[str]],
        *,
        depth: int | None = None,
        query_weight: float | None = None,
    ) -> ListwiseEncoding:
        return self.open().encode_listwise(
            queries, candidates, depth=depth, query_weight=query_weight
        )

    async def run_async(self, call: Callable[[], T]) -> T:
        return await (await self.aopen()).run_async(call)


class LazyReranker(BaseReranker):
    """The reranker of a model, whichever system that is: its folder says so at first use.

    model: an E2Rank reranks with this encoder; another system takes only its name and arguments.
    prompt_depth, query_weight: ValueError at first use where the system has none.
    """

    def __init__(
        self,
        model: LazyEncoder,
        *,
        system: System | None = None,
        prompt_depth: int | None,
        query_weight: float | None,
        stored_vectors: StoredVectors,
    ) -> None:
        self._encoder = model
        self._system = system
        self._options = {"prompt_depth": prompt_depth, "query_weight": query_weight}
        # Made here, so that values which no system takes are refused at once.
        self._listwise = ListwiseReranker(
            model,
            prompt_depth=prompt_depth,
            query_weight=query_weight,
            stored_vectors=stored_vectors,
        )
        self._opened: BaseReranker | None = None
        self._lock = Lock()

    def open(self) -> BaseReranker:
        """The reranker; its model is loaded by the first call, and by the first after `close`."""
        with self._lock:
            if self._opened is None:
                self._opened = self._load()
            return self._opened

    async def aopen(self) -> BaseReranker:
        """`open` without blocking the event loop."""
        opened = self._opened
        return opened if opened is not None else await asyncio.to_thread(self.open)

    def explain_batch(
        self, queries: Sequence[str], candidates: Sequence[Sequence[Hit]]
    ) -> tuple[list[list[Hit]], RerankReport]:
        """As the reranker has it; without any candidate nothing is opened."""
        if not any(candidates):
            return [[] for _ in candidates], RerankReport(VectorCounts(0, 0), ())
        return self.open().explain_batch(queries, candidates)

    async def run_async(self, call: Callable[[], T]) -> T:
        return await (await self.aopen()).run_async(call)

    def close(self) -> None:
        with self._lock:
            opened, self._opened = self._opened, None
        if opened is not None:
            opened.close()
        self._encoder.close()

    def _load(self) -> BaseReranker:
        model, arguments = self._encoder.name, self._encoder.arguments()
        where = {
            key: arguments[key] for key in ("revision", "local_files_only") if key in arguments
        }
        if system_of(model, self._system, **where) == "e2rank":
            self._encoder.open()
            return self._listwise
        return load_reranker(
            model,
            system=self._system,
            stored_vectors=self._listwise.vectors.policy,
            listwise=self._options,
            **arguments,
        )


@dataclass(frozen=True)
class DocumentText:
    """The text of a document as it is embedded: prefix, meta fields, content, suffix.

    Fields that are missing or None are left out; 0, False and "" are not.
    """

    meta_fields: Sequence[str] = ()
    separator: str = "\n"
    prefix: str = ""
    suffix: str = ""

    def of(self, content: str | None, meta: Mapping[str, Any]) -> str:
        fields = [str(meta[field]) for field in self.meta_fields if meta.get(field) is not None]
        return self.prefix + self.separator.join([*fields, content or ""]) + self.suffix


class Configured:
    """A component that is copied and pickled as its configuration.

    A copy opens its model and its store at its own first use, and is in no pipeline; copied with
    its pipeline, it is connected in the copy as it was. `copy.copy` and `copy.deepcopy` share the
    document store, which nobody else could have open where it is in memory or a folder. A pickle
    holds what YAML holds, so it is refused for the same settings, and with a store in memory, whose
    documents would stay behind.

    An argument that is assigned later is used as if it had been given at construction.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        # Haystack sets the pipeline when the construction is over.
        if name not in MADE_OF or PIPELINE not in vars(self):
            super().__setattr__(name, value)
            return
        anew = type(self)(**{**init_parameters(self), name: value})
        for part in map(vars(self).get, ("_encoder", "_reranker")):
            if part is not None:
                part.close()
        vars(self).update({key: each for key, each in vars(anew).items() if key not in PLACE})

    def to_dict(self) -> dict[str, Any]:
        raise NotImplementedError

    def __copy__(self) -> Any:
        return type(self)(**init_parameters(self))

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copied = type(self)(
            **{
                name: value if name == "document_store" else copy.deepcopy(value, memo)
                for name, value in init_parameters(self).items()
            }
        )
        memo[id(self)] = copied
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


def _restored(kind: Any, data: dict[str, Any], store: Any) -> Any:
    given = {} if store is None else {"document_store": store}
    parameters = {**data["init_parameters"], **given}
    return kind.from_dict({**data, "init_parameters": parameters})


def check_top_k(top_k: int | None) -> None:
    """ValueError unless `top_k` is positive, or None for "as at construction"."""
    if top_k is not None and top_k <= 0:
        raise ValueError(f"top_k must be > 0, but got {top_k}")


def init_parameters(instance: Any) -> dict[str, Any]:
    """The arguments that a component was made with; it keeps each under the argument's name."""
    names = inspect.signature(instance.__init__).parameters
    return {name: getattr(instance, name) for name in names}


def to_dict(instance: Any, **changes: Any) -> dict[str, Any]:
    """A component as Haystack keeps it in YAML; ValueError for what YAML cannot hold."""
    arguments = {**init_parameters(instance), **changes}
    return default_to_dict(
        instance,
        **{
            name: value if isinstance(value, ComponentDevice) else _plain(value, name)
            for name, value in arguments.items()
        },
    )


def _plain(value: Any, name: str) -> Any:
    """For YAML: no enums, and no records such as a Task among the encoder's arguments."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Enum):
        return _plain(value.value, name)
    if isinstance(value, Path):
        return model_name(value)
    if isinstance(value, Mapping):
        return {
            _plain(key, f"a key of {name}"): _plain(item, f"{name}[{key!r}]")
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_plain(item, f"{name}[{number}]") for number, item in enumerate(value)]
    if value is None or isinstance(value, str | bool | int | float | date):
        return value
    raise ValueError(
        f"{name} is of type {type(value).__name__}, which a pipeline in YAML cannot hold: give "
        "text, numbers, lists or dicts of them"
    )


def _record(name: str, value: Any) -> Any:
    """An argument of the encoder, which YAML may hold as the fields of a record."""
    record = {"task": Task, "prompts": Prompts}.get(name)
    return value if record is None or not isinstance(value, Mapping) else record(**value)


if TYPE_CHECKING:
    _fits: type[TextEncoder] = LazyEncoder
