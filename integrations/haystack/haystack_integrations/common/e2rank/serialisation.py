"""A component in YAML: its arguments, and its store's settings without secrets."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from datetime import date
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from pydantic import BaseModel
from qdrant_client import QdrantClient

from e2rank_rag.models.folders import model_name
from e2rank_rag.store import Layout, QdrantStore
from e2rank_rag.store.connection import is_local
from e2rank_rag.words import Bm25

WANTED = (
    "document_store must be a QdrantDocumentStore, an e2rank_rag store, or a dict: the arguments "
    "of QdrantStore.open, or 'collection' and 'client', the arguments of a QdrantClient"
)
WAY_OUT = (
    "give a QdrantDocumentStore whose api_key is a Secret, such as "
    'Secret.from_env_var("QDRANT_API_KEY"), and leave the rest out'
)
# Settings of a client that hold no secret. Others may: headers, metadata, tokens, proxies. Any
# that is True or False holds none.
HARMLESS = frozenset(
    {
        "location",
        "url",
        "port",
        "grpc_port",
        "prefer_grpc",
        "https",
        "prefix",
        "timeout",
        "host",
        "path",
        "force_disable_check_same_thread",
        "grpc_options",
        "cloud_inference",
        "local_inference_batch_size",
        "check_compatibility",
        "pool_size",
    }
)
ADDRESSES = ("location", "url", "host", "prefix")


def plain(value: Any, name: str) -> Any:
    """The value without enums and records; ValueError, with its name, for what YAML cannot hold."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Enum):
        return plain(value.value, name)
    if isinstance(value, Path):
        return model_name(value)
    if isinstance(value, Mapping):
        return {
            plain(key, f"a key of {name}"): plain(item, f"{name}[{key!r}]")
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [plain(item, f"{name}[{number}]") for number, item in enumerate(value)]
    if value is None or isinstance(value, str | bool | int | float | date):
        return value
    raise ValueError(
        f"{name} is of type {type(value).__name__}, which a pipeline in YAML cannot hold: give "
        "text, numbers, lists or dicts of them"
    )


def written(given: Any) -> dict[str, Any]:
    """A document store as YAML holds it; ValueError for a setting that may be a secret."""
    if isinstance(given, Mapping):
        layout = given.get("layout")
        return {**given, **({"layout": asdict(layout)} if isinstance(layout, Layout) else {})}
    if isinstance(given, QdrantStore):
        return _of_ours(given)
    if is_store(given):
        raise ValueError(
            f"YAML cannot hold a {type(given).__name__}: give a QdrantStore or a "
            "QdrantDocumentStore"
        )
    return _of_haystack(given)


def is_store(given: Any) -> bool:
    """Whether it is a store as `e2rank_rag` searches it (`types.Store`)."""
    return hasattr(given, "search_batch")


class InPickle:
    """A document store in a pickle: as YAML holds it, and one for all components that share it."""

    def __init__(self, given: Any, data: dict[str, Any]) -> None:
        self.given = given
        self._data = data

    def __reduce__(self) -> tuple[Any, ...]:
        read = getattr(type(self.given), "from_dict", dict)
        return read, (self._data,)


# A pickle writes an object once, however many refer to it.
_in_pickle: WeakValueDictionary[int, InPickle] = WeakValueDictionary()


def in_pickle(given: Any, data: dict[str, Any]) -> InPickle:
    """The same object for the same store while a pickle is being written.

    TypeError for a store in memory: its documents would stay behind.
    """
    arguments = data.get("init_parameters", data)
    client = {**arguments.get("client", arguments), **(arguments.get("client_kwargs") or {})}
    in_memory = is_local(client) and client.get("path") is None
    if in_memory and not isinstance(given, Mapping):
        raise TypeError(
            f"a {type(given).__name__} in memory cannot be pickled: its documents are in this "
            "process only. Use a folder or a server"
        )
    earlier = _in_pickle.get(id(given))
    if earlier is None or earlier.given is not given:
        earlier = _in_pickle[id(given)] = InPickle(given, data)
    return earlier


def check_arguments(arguments: Mapping[str, Any]) -> None:
    """ValueError for a dict that describes no store, or holds what may be a secret."""
    place = "client" if "client" in arguments else "location"
    if missing := [key for key in (place, "collection") if key not in arguments]:
        raise ValueError(f"{WANTED}; the dict lacks {missing}")
    if "location" in arguments and "client" in arguments:
        raise ValueError("a document_store dict has a 'location' or a 'client', not both")
    if "api_key" in arguments:
        raise ValueError(f"an API key has no place in a pipeline's settings: {WAY_OUT}")
    opened = QdrantStore if place == "client" else QdrantStore.open
    allowed = inspect.signature(opened).parameters.keys() - {"api_key", "async_client"}
    check_names("document_store", arguments, sorted(allowed))
    if arguments.get("bm25") is not None:
        Bm25.model_validate(arguments["bm25"])
    client = arguments.get("client", {"location": arguments.get("location")})
    if not isinstance(client, Mapping):
        raise ValueError(f"'client' is {type(client).__name__}, not a dict")
    _refuse_secrets(client, "the document store")


def check_names(what: str, given: Iterable[str], allowed: Iterable[str]) -> None:
    """ValueError, naming the first one, for given names that are not allowed."""
    if unknown := [name for name in given if name not in allowed]:
        raise ValueError(f"{what} has no {unknown[0]!r}, it has {list(allowed)}")


def _of_ours(store: QdrantStore) -> dict[str, Any]:
    defaults = _client_defaults()
    client = {
        name: value
        for name, value in store.settings.items()
        if name not in defaults or value != defaults[name]
    }
    _refuse_secrets(client, store.name)
    if own := store.async_settings:
        raise ValueError(
            f"the async_client of {store.name} has {', '.join(own)} of its own, but YAML holds one "
            "client: give both the same settings"
        )
    arguments: dict[str, Any] = {"client": client, "collection": store.collection}
    if store.vector_name is not None:
        arguments["vector_name"] = store.vector_name
    if store.words is not None:
        arguments["bm25"] = store.words.bm25.model_dump(mode="json")
        arguments["bm25_name"] = store.words.vector_name
    if store.layout != Layout():
        arguments["layout"] = asdict(store.layout)
    if store.collection_options:
        arguments["collection_options"] = dict(store.collection_options)
    return arguments


def _of_haystack(store: Any) -> dict[str, Any]:
    where = "the QdrantDocumentStore"
    _refuse_secrets({name: getattr(store, name) for name in ADDRESSES}, where)
    _refuse_secrets(store.client_kwargs, where)
    if store.metadata:
        raise ValueError(_refusal("metadata", where))
    if store.api_key is not None and not hasattr(store.api_key, "resolve_value"):
        raise ValueError(_refusal("api_key", where))
    data: dict[str, Any] = store.to_dict()
    # A reader must not drop the collection.
    data["init_parameters"]["recreate_index"] = False
    return data


def _refuse_secrets(settings: Mapping[str, Any], where: str) -> None:
    for name, value in settings.items():
        if value is None or isinstance(value, bool):
            continue
        if name not in HARMLESS or not _is_plain(value):
            raise ValueError(_refusal(name, where))
        if name in ADDRESSES and any(mark in str(value) for mark in "@?#"):
            raise ValueError(
                f"{name!r} of {where} is more than an address: it holds a user, a password or a "
                f"query, which would get into the pipeline's YAML: {WAY_OUT}"
            )


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    return value is None or isinstance(value, bool | int | float | str | Path)


def _refusal(name: str, where: str) -> str:
    return (
        f"{where} has {name!r}, which YAML cannot hold: it is no plain value, or may be a secret "
        f"such as an API key. For a pipeline in YAML {WAY_OUT}"
    )


@cache
def _client_defaults() -> dict[str, Any]:
    parameters = inspect.signature(QdrantClient.__init__).parameters
    return {
        name: each.default for name, each in parameters.items() if each.default is not each.empty
    }
