"""`e2rank check`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from e2rank_rag import terminal
from e2rank_rag.cli.options import ApiKey, Device, Language, Threads, check_language
from e2rank_rag.models.shipped import DEFAULT_MODEL

if TYPE_CHECKING:
    from e2rank_rag.check.examine import Asked, Findings
    from e2rank_rag.check.gain import Gain
    from e2rank_rag.check.queries import Queries
    from e2rank_rag.store.connection import Connection
    from e2rank_rag.training.labels.teacher import Teacher
    from e2rank_rag.words import Bm25


def _pipeline(help: str, *names: str, **settings: Any) -> Any:
    panel = "The pipeline as you describe it"
    return typer.Option(*names, help=help, rich_help_panel=panel, **settings)


def _judge(help: str, *names: str) -> Any:
    return typer.Option(*names, help=help, rich_help_panel="Your queries and their judge")


IndexPlace = Annotated[
    str,
    typer.Argument(
        help="A folder or the URL of a Qdrant server; it is only read. A folder contains pickles: "
        "those that Qdrant did not write are refused."
    ),
]
AnyCollection = Annotated[
    str | None, typer.Option("--collection", help="Default: the only one in the index.")
]
VectorName = Annotated[
    str | None, typer.Option("--vector-name", help="Default: the only one of the collection.")
]
Models = Annotated[
    str | None,
    typer.Option(
        help="Comma-separated models that may have written it: folders, hub ids, minilm. Default: "
        "all-MiniLM-L6-v2, and the --model."
    ),
]
Described = Annotated[
    str | None, _pipeline("Its embedding model. Without it no pipeline is compared.", "--model")
]
MaxLength = Annotated[
    int | None, _pipeline("Where it cuts texts, in tokens. Default: the model's own.", min=8)
]
MetaFields = Annotated[
    str | None, _pipeline("Comma-separated meta fields that it puts in front of the text.")
]
Separator = Annotated[
    str | None, _pipeline("What it puts between them, \\n for a line break. Default: \\n.")
]
Prefix = Annotated[str | None, _pipeline("What it puts in front of all. Default: the model's own.")]
QueriesFile = Annotated[
    Path | None,
    _judge("JSON lines with _id and text. Default: queries made of the documents."),
]
QrelsFile = Annotated[
    Path | None, _judge("Judgements of the queries: query, document, grade, with tabs between.")
]
Endpoint = Annotated[
    str | None, _judge("Address of a chat server that judges, such as http://localhost:8000/v1.")
]
JudgeModel = Annotated[str | None, _judge("The chat model that judges.", "--judge")]
KeyEnv = Annotated[str | None, _judge("Environment variable that contains the judge's API key.")]
Measure = Annotated[
    bool, typer.Option("--measure/--no-measure", help="Measure what reranking brings.")
]
SampleSize = Annotated[int, typer.Option("--sample", min=4, help="How many texts to compare.")]
Seed = Annotated[int, typer.Option(help="Seed of the sample and of queries made of documents.")]
ReportFile = Annotated[Path | None, typer.Option("--json", help="Write the report to this file.")]


def check(
    index: IndexPlace,
    collection: AnyCollection = None,
    vector_name: VectorName = None,
    models: Models = None,
    model: Described = None,
    max_length: MaxLength = None,
    meta_fields: MetaFields = None,
    separator: Separator = None,
    prefix: Prefix = None,
    queries: QueriesFile = None,
    qrels: QrelsFile = None,
    endpoint: Endpoint = None,
    judge: JudgeModel = None,
    key_env: KeyEnv = None,
    language: Language = None,
    measure: Measure = True,
    sample: SampleSize = 32,
    seed: Seed = 0,
    json_file: ReportFile = None,
    device: Device = None,
    threads: Threads = None,
    api_key: ApiKey = None,
) -> None:
    """Say which model wrote a Qdrant collection, and what reranking would bring there."""
    from e2rank_rag.check.examine import Asked, examine
    from e2rank_rag.check.opening import opened
    from e2rank_rag.check.probe import Wish
    from e2rank_rag.store.opening import kind_of

    described = (max_length, meta_fields, separator, prefix)
    if model is None and any(each is not None for each in described):
        raise typer.BadParameter("the description of a pipeline begins with its --model")
    if json_file is not None:
        _check_output(json_file)
    teacher = _teacher(queries, qrels, endpoint, judge, key_env)
    asked_queries = _queries(queries, qrels)
    bm25 = check_language(language or "english")
    server = kind_of(index) == "server"
    if server and api_key is None:
        api_key = os.environ.get("QDRANT_API_KEY")
    asked = Asked(
        location=index,
        models=_names(models) or [DEFAULT_MODEL],
        collection=collection,
        vector_name=vector_name,
        described=model,
        wish=Wish(tuple(_names(meta_fields)), _unescaped(separator), prefix, max_length),
        size=sample,
        seed=seed,
        device=device,
        threads=threads,
        keyed=server and api_key is not None,
    )
    with opened(index, api_key) as connection:
        with terminal.err.status("comparing models"):
            findings = examine(connection, asked)
        _print_findings(findings)
        gain = None
        if measure and findings.place is not None:
            gain = _measured(connection, findings, asked, asked_queries, bm25, teacher)
    programs = _print_programs(findings)
    if json_file is not None:
        _write(json_file, findings, gain, programs)
    if findings.match is None or findings.mismatches:
        raise typer.Exit(1)


def _queries(queries: Path | None, qrels: Path | None) -> Queries | None:
    from e2rank_rag.check.queries import own_queries

    return None if queries is None else own_queries(queries, qrels)


def _teacher(
    queries: Path | None,
    qrels: Path | None,
    endpoint: str | None,
    judge: str | None,
    key_env: str | None,
) -> Callable[[], Teacher] | None:
    """What opens the judge; BadParameter for options that do not belong together."""
    if queries is None and (qrels or endpoint or judge):
        raise typer.BadParameter("--qrels, --endpoint and --judge judge the --queries of a file")
    if (endpoint is None) != (judge is None):
        raise typer.BadParameter("--endpoint and --judge belong together: the server, its model")
    if qrels is not None and endpoint is not None:
        raise typer.BadParameter("--qrels are judgements already: leave --endpoint and --judge out")
    if key_env is not None and endpoint is None:
        raise typer.BadParameter("--key-env names the key of an --endpoint")
    if queries is not None and qrels is None and endpoint is None:
        raise typer.BadParameter(
            "--queries needs judgements: add --qrels FILE, or --endpoint URL with --judge MODEL"
        )
    if endpoint is None or judge is None:
        return None
    address, name = endpoint, judge

    def opened() -> Teacher:
        from e2rank_rag.training.labels.chat import ChatTeacher

        return ChatTeacher(address, name, terms="figures only", key_env=key_env)

    return opened


def _measured(
    connection: Connection,
    findings: Findings,
    asked: Asked,
    queries: Queries | None,
    bm25: Bm25 | None,
    teacher: Callable[[], Teacher] | None,
) -> Gain | None:
    """Measure and print; None where nothing could be measured, which is said."""
    from e2rank_rag.check.gain import measure, searchable
    from e2rank_rag.check.queries import made_up
    from e2rank_rag.check.telling import gain_lines
    from e2rank_rag.errors import StoredVectorMismatch
    from e2rank_rag.rendering import systems_table

    place, match = findings.place, findings.match
    assert place is not None
    assert match is not None
    if queries is None:
        queries = made_up((*findings.sample.texts, *findings.sample.others), asked.seed)
        if not queries.texts:
            terminal.say(terminal.out, "not measured: no document has a title or a sentence")
            return None
    points = findings.outline.points
    whole = asked.opened(match.model)
    try:
        with (
            whole,
            whole.with_recipe(match.recipe) as encoder,
            searchable(connection, place, match, bm25, points) as (store, words),
        ):
            gain = measure(encoder, store, queries, words=words, teacher=teacher, progress=True)
    except StoredVectorMismatch as error:
        terminal.say(terminal.out, f"not measured: {error}")
        return None
    title = f"{place.collection}, {gain.queries} queries, {match.model}"
    terminal.out.print(systems_table(gain.results, title=title, differences=gain.differences))
    for line in gain_lines(gain):
        terminal.say(terminal.out, line)
    return gain


def _print_findings(findings: Findings) -> None:
    from e2rank_rag.check.telling import fit_lines, layout_lines, model_lines

    lines = [*layout_lines(findings), *model_lines(findings)]
    if findings.mismatches is not None:
        lines += fit_lines(findings.mismatches)
    for line in lines:
        terminal.say(terminal.out, line)


def _print_programs(findings: Findings) -> dict[str, str]:
    from e2rank_rag.check.lines import haystack_lines, langchain_lines

    if findings.place is None or findings.match is None:
        return {}
    programs = {
        "haystack": haystack_lines(findings.place, findings.match),
        "langchain": langchain_lines(findings.place, findings.match),
    }
    for name, program in programs.items():
        for line in ("", f"# {name}", *program.splitlines()):
            terminal.say(terminal.out, line)
    return programs


def _write(path: Path, findings: Findings, gain: Gain | None, programs: dict[str, str]) -> None:
    from e2rank_rag.check.telling import as_json
    from e2rank_rag.models.files import new_files, write_json

    with new_files(path.parent) as folder:
        write_json(folder / path.name, as_json(findings, gain, programs))


def _check_output(path: Path) -> None:
    """OSError before anything is measured, if the report could not be written at the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; name a file in it for the report")
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"{path.parent} cannot be written; name another folder")


def _names(given: str | None) -> list[str]:
    return [name.strip() for name in (given or "").split(",") if name.strip()]


def _unescaped(separator: str | None) -> str | None:
    """With \\n and \\t as what they mean: a shell passes them as two characters."""
    if separator is None:
        return None
    return separator.replace("\\n", "\n").replace("\\t", "\t")
