"""Clients of a Qdrant server with a limit on the size of replies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qdrant_client import AsyncQdrantClient, QdrantClient

from e2rank_rag.remote import LONGEST_REPLY_BYTES, async_reply_limits, reply_limits

LONGEST_MESSAGE = "grpc.max_receive_message_length"


def server_client(options: Mapping[str, Any]) -> QdrantClient:
    """A client with these settings (`QdrantClient.init_options`). No server is contacted yet."""
    client = QdrantClient(**_limited(options, reply_limits()))
    _keep_settings(client, options)
    return client


def async_server_client(options: Mapping[str, Any]) -> AsyncQdrantClient:
    """The asynchronous client with the same settings."""
    client = AsyncQdrantClient(**_limited(options, async_reply_limits()))
    _keep_settings(client, options)
    return client


def _limited(options: Mapping[str, Any], limits: dict[str, Any]) -> dict[str, Any]:
    given = options.get("event_hooks") or {}
    return {
        **options,
        "event_hooks": {event: [*given.get(event, []), *limits[event]] for event in limits},
        "grpc_options": {
            LONGEST_MESSAGE: LONGEST_REPLY_BYTES,
            **(options.get("grpc_options") or {}),
        },
        # The check asks the server in a thread, where failure is a stray warning; the first request
        # tells the same as an error.
        "check_compatibility": False,
    }


def _keep_settings(client: QdrantClient | AsyncQdrantClient, options: Mapping[str, Any]) -> None:
    """Keep the caller's settings, without the limits added here, for copies and for YAML."""
    client.init_options.pop("event_hooks")
    client.init_options["grpc_options"] = options.get("grpc_options")
    if "event_hooks" in options:
        client.init_options["event_hooks"] = options["event_hooks"]
