"""`e2rank label`: ask a teacher, and print the counts."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from e2rank_rag import terminal

if TYPE_CHECKING:
    from e2rank_rag.training.labels.lists import LabelReport
    from e2rank_rag.training.labels.teacher import Teacher
    from e2rank_rag.types import RankingExample


def _chat(help: str, **settings: Any) -> Any:
    return typer.Option(help=help, rich_help_panel="Options for a chat model", **settings)


Lists = Annotated[Path, typer.Argument(help="Training lists, as `e2rank mine` writes them.")]
Output = Annotated[Path, typer.Argument(help="The labelled lists: .jsonl, appended to.")]
TeacherName = Annotated[
    str,
    typer.Option(
        "--teacher", help="A cross-encoder: folder or hub id. With --endpoint: a chat model's name."
    ),
]
Terms = Annotated[
    str | None,
    typer.Option(help="What the teacher's output may be used for, in words or as a URL."),
]
ListSize = Annotated[
    int, typer.Option(min=2, help="Documents per list: positives, then the nearest others.")
]
Limit = Annotated[int | None, typer.Option(min=1, help="Label at most this many lists.")]
Corpus = Annotated[Path | None, typer.Option(help="Documents, for lists that contain only ids.")]
TeacherDevice = Annotated[
    str | None,
    typer.Option(
        "--device", help="For a cross-encoder: cpu, cuda, ... Default: CUDA if there is one."
    ),
]
Endpoint = Annotated[
    str | None, _chat("Address of a chat server, such as http://localhost:8000/v1.")
]
KeyEnv = Annotated[str | None, _chat("Environment variable that contains the API key.")]
Body = Annotated[str | None, _chat("JSON object with more fields of a request; kept in the data.")]
DocumentWords = Annotated[int | None, _chat("Cut documents after this many words: 300.", min=1)]
Attempts = Annotated[int | None, _chat("Answers to ask for before a list is dropped: 3.", min=1)]
Timeout = Annotated[float | None, _chat("Seconds for one answer, with retries: 300.", min=0.1)]
Seed = Annotated[int | None, _chat("Seed of the order in which documents are shown: 0.")]
Concurrency = Annotated[int, _chat("Lists to ask for at the same time.", min=1)]


def label(
    lists: Lists,
    output: Output,
    teacher: TeacherName,
    terms: Terms = None,
    list_size: ListSize = 16,
    limit: Limit = None,
    corpus: Corpus = None,
    device: TeacherDevice = None,
    endpoint: Endpoint = None,
    key_env: KeyEnv = None,
    body: Body = None,
    document_words: DocumentWords = None,
    attempts: Attempts = None,
    timeout: Timeout = None,
    seed: Seed = None,
    concurrency: Concurrency = 8,
) -> None:
    """Let a teacher order training lists. Run the same command to go on where it stopped."""
    from e2rank_rag.training.examples import read_examples
    from e2rank_rag.training.labels.lists import LabelReport

    options = {
        "key_env": key_env,
        "body": None if body is None else _json_object(body),
        "document_words": document_words,
        "attempts": attempts,
        "timeout_s": timeout,
        "seed": seed,
    }
    given = {name: value for name, value in options.items() if value is not None}
    chosen = _teacher(teacher, terms, device, endpoint, given)
    examples = read_examples(lists, corpus=corpus)
    report = LabelReport(progress=True)
    sizes = {"list_size": list_size, "concurrency": concurrency, "limit": limit}
    try:
        asyncio.run(_ask(chosen, examples, output, report, sizes))
    except KeyboardInterrupt:
        terminal.err.print("interrupted; run the same command to go on")
        raise typer.Exit(1) from None
    finally:
        if report != LabelReport():
            _tell(report, output, chosen.limit)


async def _ask(
    teacher: Teacher,
    examples: list[RankingExample],
    output: Path,
    report: LabelReport,
    sizes: Mapping[str, Any],
) -> None:
    from e2rank_rag.training.labels.lists import label_lists

    async with aclosing(teacher):
        await label_lists(examples, teacher, output, report=report, **sizes)


def _teacher(
    name: str,
    terms: str | None,
    device: str | None,
    endpoint: str | None,
    given: Mapping[str, Any],
) -> Teacher:
    if endpoint is None:
        if given:
            raise typer.BadParameter(
                f"only for a chat model: {', '.join(given)}; add --endpoint, or leave them out"
            )
        from e2rank_rag.training.labels.cross_encoder import CrossEncoderTeacher

        return CrossEncoderTeacher(name, terms=terms, device=device)
    if device is not None:
        raise typer.BadParameter(
            "--device is for a cross-encoder, and --endpoint asks a server; leave one out"
        )
    if terms is None:
        raise typer.BadParameter(
            "--endpoint needs --terms: what the model's answers may be used for, such as the name "
            "of a licence or a URL; it goes into the data"
        )
    from e2rank_rag.training.labels.chat import ChatTeacher

    return ChatTeacher(endpoint, name, terms=terms, **given)


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise typer.BadParameter(f"--body is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise typer.BadParameter(f"--body must be a JSON object, got {text!r}")
    return value


def _tell(report: LabelReport, output: Path, limit: str) -> None:
    for line in _told(report, output, limit):
        terminal.say(terminal.out, line)


def _told(report: LabelReport, output: Path, limit: str) -> Iterator[str]:
    yield f"{report.labelled:,} lists labelled, {report.before:,} were there before, in {output}"
    if report.repeated:
        yield f"{report.repeated:,} lists are the same as others and were left out"
    for problem, count in report.dropped.most_common():
        said = report.said[problem]
        yield f"{count:,} dropped: {problem}" + (f"; the first: {said}" if said else "")
    if report.left:
        yield f"{report.left:,} left by --limit"
    if report.cut:
        yield f"{report.cut:,} documents were longer than {limit} and were cut there"
    if report.prompt_tokens or report.completion_tokens:
        yield f"{report.prompt_tokens:,} prompt and {report.completion_tokens:,} completion tokens"
    if report.unmetered:
        yield f"{report.unmetered:,} answers came without a count of their tokens"
