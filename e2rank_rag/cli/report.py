"""`e2rank report`: a page of what reranking brings on the caller's own datasets."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from e2rank_rag import terminal
from e2rank_rag.cli.options import (
    ApiKey,
    Device,
    Dtype,
    Language,
    Model,
    Reranker,
    RerankerSystem,
    Split,
    Threads,
    check_language,
    check_system,
    index_name,
    open_encoder,
    open_reranker,
    open_store,
)
from e2rank_rag.models.folders import system_of
from e2rank_rag.models.shipped import DEFAULT_MODEL

if TYPE_CHECKING:
    from e2rank_rag.evaluation.report import Experiment

BeirFolders = Annotated[
    list[Path], typer.Argument(help="BEIR folders: corpus, queries, qrels/SPLIT.tsv.")
]
Output = Annotated[
    Path,
    typer.Option("--output", "-o", help="The page, .html; the figures go beside it, .json."),
]
Queries = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Measure this many judged queries of each dataset, spread evenly. Default: all.",
    ),
]
Without = Annotated[
    list[str] | None,
    typer.Option(
        help="A dataset that the second mean leaves out, besides those on which BM25 is far above "
        "plain cosine. May be given several times."
    ),
]
KeptIndex = Annotated[
    str | None,
    typer.Option(help="Keep the indexes in this folder or on this server. Default: in memory."),
]


def report(
    folders: BeirFolders,
    output: Output = Path("report.html"),
    split: Split = "test",
    queries: Queries = None,
    model: Model = DEFAULT_MODEL,
    reranker: Reranker = None,
    system: RerankerSystem = None,
    language: Language = None,
    without: Without = None,
    index: KeptIndex = None,
    device: Device = None,
    dtype: Dtype = None,
    threads: Threads = None,
    api_key: ApiKey = None,
) -> None:
    """Measure every method on datasets, and write a page about what reranking brings."""
    from e2rank_rag.report.machine import this_machine
    from e2rank_rag.report.measuring import Plan, finished, measure_dataset
    from e2rank_rag.report.page import json_path, write_report
    from e2rank_rag.report.summary import summarise

    kind, bm25 = check_system(reranker, system), check_language(language or "english")
    experiments = _experiments(folders, split, output, without or [])
    ranking = reranker or (model if system_of(model) == "resrank" else None)
    with ExitStack() as opened:
        encoder = opened.enter_context(open_encoder(model, device, dtype, threads))
        ranker = None
        if ranking is not None:
            ranker = opened.enter_context(open_reranker(ranking, kind, device, dtype, threads))
        machine, figures = this_machine(encoder), []
        plan = Plan.of(encoder, ranker, words=bm25 is not None)
        for each in experiments:
            terminal.say(terminal.err, f"measuring {each.name}")
            name = index_name(each.name, encoder, bm25)
            with closing(open_store(index or ":memory:", name, api_key, bm25=bm25)) as store:
                measure = partial(measure_dataset, each, plan, encoder, store)
                figures.append(measure(reranker=ranker, queries=queries, progress=True))
        done = finished(
            figures, plan, encoder, machine, reranker=reranker, without=tuple(without or ())
        )
    write_report(done, output)
    for sentence in summarise(done):
        terminal.say(terminal.out, sentence)
    terminal.say(terminal.out, f"wrote {output} and {json_path(output)}")


def _experiments(
    folders: Sequence[Path], split: str, output: Path, without: Sequence[str]
) -> list[Experiment]:
    """The datasets, read; errors that need no model come here."""
    from e2rank_rag.evaluation.report import Experiment
    from e2rank_rag.report.page import json_path

    if output.suffix.lower() != ".html":
        raise typer.BadParameter(f"--output takes a file that ends in .html, got {output}")
    experiments = [Experiment.read(folder, split) for folder in folders]
    names = [each.name for each in experiments]
    for name in names:
        if names.count(name) > 1:
            raise typer.BadParameter(
                f"two folders are named {name!r}, so the page could not tell their datasets apart: "
                "rename one, or make two reports"
            )
    unknown = [name for name in without if name not in names]
    if unknown:
        raise typer.BadParameter(
            f"--without takes names of the datasets, {', '.join(names)}; got {unknown[0]!r}"
        )
    for path in (output, json_path(output)):
        experiments[0].check_outputs(path, None)
    return experiments
