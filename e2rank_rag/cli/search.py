"""`e2rank search`."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated, Any

import typer

from e2rank_rag import terminal
from e2rank_rag.cli.options import (
    ApiKey,
    CollectionName,
    Device,
    Dtype,
    Index,
    Reranker,
    RerankerSystem,
    Threads,
    check_expand,
    check_system,
    open_encoder,
    open_reranker,
    open_store,
)
from e2rank_rag.models.shipped import DEFAULT_MODEL, SHIPPED_MODELS

if TYPE_CHECKING:
    from e2rank_rag.store import QdrantStore
    from e2rank_rag.types import Hit

RecordedModel = Annotated[
    str | None,
    typer.Option(
        "--model", "-m", help="Default: the model that wrote the index, if it ships here."
    ),
]
TopK = Annotated[int, typer.Option(min=1, help="How many documents to show.")]
RetrieveK = Annotated[int, typer.Option(min=1, help="How many documents to retrieve and rerank.")]
Rerank = Annotated[bool, typer.Option("--rerank/--no-rerank", help="Rerank the results.")]
Expand = Annotated[
    bool, typer.Option("--expand", help="Search a second time with the listwise vector.")
]
Hybrid = Annotated[
    bool | None,
    typer.Option(
        "--hybrid/--no-hybrid",
        help="Retrieve by the words of the query too. Default: where the index holds words.",
        show_default=False,
    ),
]
Explain = Annotated[
    bool,
    typer.Option(
        "--explain", help="Show what each score is the sum of, and which documents pulled it."
    ),
]
Filters = Annotated[
    list[str] | None,
    typer.Option(
        help='Condition on meta: key=value, key>=5, key<9; key="5" for the text 5. Repeatable.'
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def search(
    query: Annotated[str, typer.Argument(help="What to look for.")],
    index: Index,
    collection: CollectionName = "documents",
    model: RecordedModel = None,
    top_k: TopK = 10,
    retrieve_k: RetrieveK = 100,
    rerank: Rerank = True,
    reranker: Reranker = None,
    system: RerankerSystem = None,
    hybrid: Hybrid = None,
    expand: Expand = False,
    filter: Filters = None,
    explain: Explain = False,
    as_json: AsJson = False,
    device: Device = None,
    dtype: Dtype = None,
    threads: Threads = None,
    api_key: ApiKey = None,
) -> None:
    """Search an index and rerank the results."""
    from e2rank_rag.pipeline import SearchPipeline

    if not rerank and (expand or reranker or explain):
        option = "--expand" if expand else "--reranker" if reranker else "--explain"
        raise typer.BadParameter(f"{option} needs reranking; leave out --no-rerank")
    kind = check_system(reranker, system)
    conditions = parse_filters(filter or [])
    with ExitStack() as opened:
        store = open_store(index, collection, api_key, must_exist=True)
        opened.callback(store.close)
        if hybrid and not store.hybrid:
            raise ValueError(
                f"{store.name} holds no words: leave --hybrid out, or add them with `e2rank index "
                "... --language english` and the same documents, of which none is encoded again"
            )
        model = model or _recorded_model(store)
        check_expand(expand, reranker or model, kind)
        encoder = opened.enter_context(open_encoder(model, device, dtype, threads))
        ranker = None
        if rerank:
            ranker = opened.enter_context(
                open_reranker(reranker or model, kind, device, dtype, threads)
            )
        hits = SearchPipeline(encoder, store, ranker).search(
            query,
            top_k=top_k,
            retrieve_k=max(top_k, retrieve_k),
            filter=conditions or None,
            expand=expand,
            hybrid=hybrid,
            explain=explain,
        )
    _print_hits(hits, query, as_json=as_json)


def _recorded_model(store: QdrantStore) -> str:
    """The model that wrote the index, if it is one that ships with this package.

    ValueError for any other: anybody can write a name into an index, and opening it runs code.
    """
    recorded = store.model
    if recorded is None or recorded in SHIPPED_MODELS:
        return recorded or DEFAULT_MODEL
    raise ValueError(
        f"{store.name} says that {recorded!r} wrote it; whoever made the index chose that name, "
        "so it is not opened without your consent: if you trust it, add: "
        f"{shlex.join(['--model', recorded])}"
    )


def _print_hits(hits: Sequence[Hit], query: str, *, as_json: bool) -> None:
    from e2rank_rag.rendering import explanation_table, hits_table, pulls_table

    if as_json:
        typer.echo(terminal.json_text([_record(hit) for hit in hits]))
    elif any(hit.explanation is not None for hit in hits):
        terminal.out.print(explanation_table(hits, title=query, width=terminal.out.width))
        if any(hit.explanation is not None and hit.explanation.parts for hit in hits):
            terminal.out.print(pulls_table(hits, width=terminal.out.width))
    else:
        terminal.out.print(hits_table(hits, title=query))


def _record(hit: Hit) -> dict[str, Any]:
    record = {
        "id": hit.document.id,
        "score": hit.score,
        "text": hit.document.text,
        "meta": dict(hit.document.meta),
    }
    if hit.explanation is not None:
        record["explanation"] = hit.explanation.as_dict()
    return record


def parse_filters(conditions: list[str]) -> dict[str, Any]:
    """A filter from conditions like `year>=2015` and `lang=en`.

    A key with several `=` matches any of the values; one with `>=` and `<` is a range. A value is
    parsed as JSON (5, true, "5") if it is valid JSON, else it is text.
    """
    names = {">=": "gte", "<=": "lte", ">": "gt", "<": "lt", "=": ""}
    parsed: dict[str, Any] = {}
    for condition in conditions:
        places = [(condition.find(sign), -len(sign), sign) for sign in names if sign in condition]
        if not places or min(places)[0] < 1:
            raise typer.BadParameter(f"--filter takes key=value or key>=5, got {condition!r}")
        sign = min(places)[2]
        key, value = (part.strip() for part in condition.split(sign, 1))
        if not key or key.endswith("!"):
            raise typer.BadParameter(f"--filter takes key=value or key>=5, got {condition!r}")
        read = _json_or_text(value)
        if isinstance(read, dict) or value.startswith(("=", "<", ">")):
            raise typer.BadParameter(
                f"--filter {condition}: write {key}=5, or {key}>=5 for a range; a text that begins "
                f"with {value[0]} is {key}={json.dumps(value)}"
            )
        known = parsed.get(key)
        if names[sign]:
            if known is not None and not isinstance(known, dict):
                raise typer.BadParameter(f"--filter {key}: = and {sign} cannot be combined")
            if known is not None and names[sign] in known:
                raise typer.BadParameter(f"--filter {key}: {sign} is given twice")
            parsed[key] = {**(known or {}), names[sign]: read}
        elif isinstance(known, dict):
            raise typer.BadParameter(f"--filter {key}: = cannot be combined with a range")
        else:
            parsed[key] = read if key not in parsed else [*_as_list(known), read]
    return parsed


def _json_or_text(value: str) -> Any:
    try:
        return json.loads(value, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return value


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
