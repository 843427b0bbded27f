"""A document store in YAML: every setting that it was opened with, and no secret; or a refusal."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from haystack_integrations.components.rankers.e2rank._layout import whole
from qdrant_client import QdrantClient
from qdrant_client.local.qdrant_local import META_INFO_FILENAME

from e2rank_rag.errors import StoreError
from e2rank_rag.store import Layout, QdrantStore
from e2rank_rag.store.opening import MEMORY, kind_of

WANTED = (
    "document_store must be a QdrantDocumentStore, an e2rank_rag store, or a dict: the arguments "
    "of QdrantStore.open, or 'collection' and 'client', the arguments of a QdrantClient"
)
WAY_OUT = (
    "give a QdrantDocumentStore whose api_key is a Secret, such as "
    'Secret.from_env_var("QDRANT_API_KEY"), and leave the rest out'
)
# Of all others nobody knows whether they hold a secret: headers, metadata, tokens, proxies. (What
# is switched on or off holds none.)
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


def written(given: Any) -> dict[str, Any]:
    """The form in which a store is in YAML, as `open_arguments` or Haystack reads it."""
    if isinstance(given, Mapping):
        layout = given.get("layout")
        return {**given, **({"layout": asdict(layout)} if isinstance(layout, Layout) else {})}
    if isinstance(given, QdrantStore):
        return _of_ours(given)
    if hasattr(given, "search_batch"):
        raise ValueError(
            f"{type(given).__name__} cannot be written down: give a QdrantStore, or a "
            "QdrantDocumentStore"
        )
    return _of_haystack(given)


class InPickle:
    """A document store in a pickle: as it is in YAML, and one for all that share it there."""

    def __init__(self, given: Any, data: dict[str, Any]) -> None:
        self.given = given
        self._data = data

    def __reduce__(self) -> tuple[Any, ...]:
        read = getattr(type(self.given), "from_dict", dict)
        return read, (self._data,)


# A pickle writes an object once, however many refer to it.
_in_pickle: WeakValueDictionary[int, InPickle] = WeakValueDictionary()


def in_pickle(given: Any, data: dict[str, Any]) -> InPickle:
    """The same object for the same store, as long as a pickle is being written.

    TypeError for a store in memory: its documents would stay behind.
    """
    arguments = data.get("init_parameters", data)
    client = {**arguments.get("client", arguments), **(arguments.get("client_kwargs") or {})}
    if client.get("location") == MEMORY and not isinstance(given, Mapping):
        raise TypeError(
            f"a {type(given).__name__} in memory cannot be pickled: its documents are in this "
            "process only. Use a folder or a server"
        )
    known = _in_pickle.get(id(given))
    if known is None or known.given is not given:
        known = _in_pickle[id(given)] = InPickle(given, data)
    return known


def check_arguments(arguments: Mapping[str, Any]) -> None:
    """ValueError for a dict that opens no store, or holds what is or may be a secret."""
    place = "client" if "client" in arguments else "location"
    if missing := [key for key in (place, "collection") if key not in arguments]:
        raise ValueError(f"{WANTED}; the dict lacks {missing}")
    if "location" in arguments and "client" in arguments:
        raise ValueError("a document store has a 'location' or a 'client', not both")
    if "api_key" in arguments:
        raise ValueError(f"an API key has no place in a pipeline's settings: {WAY_OUT}")
    opened = QdrantStore if place == "client" else QdrantStore.open
    allowed = inspect.signature(opened).parameters.keys() - {"api_key", "async_client"}
    refuse_unknown("a document store", arguments, sorted(allowed))
    client = arguments.get("client", {"location": arguments.get("location")})
    if not isinstance(client, Mapping):
        raise ValueError(f"'client' is {type(client).__name__}, not a dict")
    _refuse_secrets(client, "the document store")


def refuse_unknown(what: str, given: Iterable[str], allowed: Iterable[str]) -> None:
    """ValueError that names the first of the given names that is none of the allowed ones."""
    if unknown := [name for name in given if name not in allowed]:
        raise ValueError(f"{what} has no {unknown[0]!r}, it has {list(allowed)}")


def open_arguments(arguments: Mapping[str, Any]) -> QdrantStore:
    """The store that such a dict describes; StoreError where it is a folder that is not there."""
    options = dict(arguments)
    layout = options.get("layout") or {}
    layout = layout if isinstance(layout, Layout) else Layout(**layout)
    options["layout"] = whole(layout, options.get("vector_name"))
    if "client" not in options:
        if kind_of(options["location"]) == "folder":
            refuse_missing_folder(options["location"])
        return QdrantStore.open(**options)
    client = options.pop("client")
    if client.get("path") is not None:
        refuse_missing_folder(client["path"])
    return QdrantStore(dict(client), options.pop("collection"), **options)


def refuse_missing_folder(path: str | Path) -> None:
    """StoreError, before Qdrant makes a folder of a path that was mistyped."""
    if not (Path(path).expanduser() / META_INFO_FILENAME).is_file():
        raise StoreError(f"there is no Qdrant folder at {path}: index documents first")


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
            f"the async_client of {store.name} has {', '.join(own)} of its own, and YAML holds one "
            "client: give both the same settings"
        )
    arguments: dict[str, Any] = {"client": client, "collection": store.collection}
    if store.vector_name is not None:
        arguments["vector_name"] = store.vector_name
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
    # Nothing that reads may drop the collection.
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
                f"{name!r} of {where} is more than an address (a user, a password or a query are "
                f"in it), and would be in the pipeline's YAML: {WAY_OUT}"
            )


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    return value is None or isinstance(value, bool | int | float | str | Path)


def _refusal(name: str, where: str) -> str:
    return (
        f"{where} has {name!r}, and such a setting or API key cannot be written down: it is no "
        f"plain value, or may hold a secret. For a pipeline in YAML {WAY_OUT}"
    )


@cache
def _client_defaults() -> dict[str, Any]:
    parameters = inspect.signature(QdrantClient.__init__).parameters
    return {
        name: each.default for name, each in parameters.items() if each.default is not each.empty
    }
