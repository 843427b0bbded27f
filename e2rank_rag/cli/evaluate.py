"""`e2rank evaluate`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
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
    check_expand,
    check_language,
    check_system,
    index_name,
    open_encoder,
    open_reranker,
    open_store,
    report_bad,
)
from e2rank_rag.models.folders import system_of
from e2rank_rag.models.shipped import DEFAULT_MODEL

if TYPE_CHECKING:
    from e2rank_rag.evaluation.differences import Differences
    from e2rank_rag.evaluation.report import Experiment
    from e2rank_rag.evaluation.systems import SystemResult
    from e2rank_rag.words import Bm25

BeirFolder = Annotated[
    Path, typer.Argument(help="A BEIR folder: corpus, queries, qrels/SPLIT.tsv.")
]
Systems = Annotated[
    str | None,
    typer.Option(
        help="Comma-separated: retrieve, bm25, hybrid, rocchio, feedback, evidence, prompt (of the "
        "model without its listwise adapter), listwise, and rerank (the --reranker, or a ResRank "
        "model's own). Default: retrieve, hybrid, rocchio, and what the models provide.",
    ),
]
Against = Annotated[
    str | None,
    typer.Option(
        help="The system that every other one is tested against. Default: hybrid, else retrieve."
    ),
]
FirstStage = Annotated[
    str | None,
    typer.Option(
        "--candidates",
        help="Rerank what a dense or a hybrid search finds. Default: hybrid where words are "
        "indexed.",
    ),
]
Measures = Annotated[
    str | None, typer.Option(help="Comma-separated names of ir-measures: nDCG@5,AP,RR@10.")
]
RunFile = Annotated[
    Path | None, typer.Option(help="A TREC run: rank its candidates instead of searching.")
]
QrelsFile = Annotated[
    Path | None, typer.Option(help="Judgements from this file instead of the folder's.")
]
Expand = Annotated[
    bool, typer.Option("--expand", help="Rerankers search again with their own vector.")
]
KeptIndex = Annotated[
    str | None,
    typer.Option(help="Keep the index in this folder or on this server. Default: in memory."),
]
FiguresFile = Annotated[Path | None, typer.Option("--json", help="Write the figures to this file.")]
RunFolder = Annotated[
    Path | None, typer.Option(help="Write a TREC run for each system into this folder.")
]
SkipBad = Annotated[
    bool,
    typer.Option("--skip-bad", help="Report bad queries, such as empty ones, and count them as 0."),
]


def evaluate(
    folder: BeirFolder,
    split: Split = "test",
    model: Model = DEFAULT_MODEL,
    reranker: Reranker = None,
    system: RerankerSystem = None,
    systems: Systems = None,
    against: Against = None,
    candidates: FirstStage = None,
    language: Language = None,
    measures: Measures = None,
    run: RunFile = None,
    qrels: QrelsFile = None,
    expand: Expand = False,
    index: KeptIndex = None,
    json_file: FiguresFile = None,
    run_dir: RunFolder = None,
    skip_bad: SkipBad = False,
    device: Device = None,
    dtype: Dtype = None,
    threads: Threads = None,
    api_key: ApiKey = None,
) -> None:
    """Measure retrieval and reranking on a dataset: nDCG@10, R@100, RR@10, or others."""
    from e2rank_rag.evaluation.differences import Differences
    from e2rank_rag.evaluation.report import Experiment, run_experiment
    from e2rank_rag.evaluation.systems import MethodOptions

    if run is not None:
        _check_run(expand, candidates, language)
    kind = check_system(reranker, system)
    bm25 = None if run is not None else check_language(language or "english")
    methods, asked = _systems(systems, model, reranker, bm25), _measures(measures)
    against, hybrid = _against(against, methods), _hybrid(candidates, bm25)
    ranking = (reranker or model) if "rerank" in methods else None
    if ranking is not None:
        check_expand(expand, ranking, kind)
    on_bad = report_bad if skip_bad else None
    experiment = Experiment.read(folder, split, run=run, qrels=qrels, on_bad=on_bad)
    experiment.check_outputs(json_file, run_dir)
    with ExitStack() as opened:
        encoder = opened.enter_context(open_encoder(model, device, dtype, threads))
        ranker = None
        if ranking is not None:
            ranker = opened.enter_context(open_reranker(ranking, kind, device, dtype, threads))
        name = index_name(experiment.name, encoder, bm25)
        store = open_store(index or ":memory:", name, api_key, bm25=bm25)
        opened.callback(store.close)
        options = MethodOptions(
            reranker=ranker, hybrid=hybrid, expand=expand, measures=asked, progress=True
        )
        results = run_experiment(experiment, encoder, store, methods, **options)
    with terminal.err.status("comparing the systems"):
        compared = Differences.of({name: of.by_query for name, of in results.items()}, against)
    models = model if reranker is None else f"{model}, reranked by {reranker}"
    _print_results(experiment, results, models, compared)
    if json_file is not None:
        experiment.write_json(
            json_file, results, model=model, reranker=reranker, differences=compared
        )
    if run_dir is not None:
        experiment.write_runs(run_dir, results)


def _check_run(expand: bool, candidates: str | None, language: str | None) -> None:
    """BadParameter for options of a search beside --run."""
    if expand:
        raise typer.BadParameter("--expand searches the collection; with --run nothing is searched")
    if candidates is not None:
        raise typer.BadParameter("--candidates searches for them; --run gives them: name one")
    if language not in (None, "none"):
        raise typer.BadParameter("--language is of the words to search; --run searches nothing")


def _hybrid(candidates: str | None, bm25: Bm25 | None) -> bool | None:
    """Whether --candidates asks for a hybrid search; None: wherever words are indexed."""
    if candidates is None:
        return None
    if candidates not in ("dense", "hybrid"):
        raise typer.BadParameter(f"--candidates takes dense or hybrid, got {candidates!r}")
    if candidates == "hybrid" and bm25 is None:
        raise typer.BadParameter("--candidates hybrid needs words: leave --language none out")
    return candidates == "hybrid"


def _against(against: str | None, methods: Sequence[str]) -> str:
    """The method that the others are tested against."""
    if against is None:
        return next((name for name in ("hybrid", "retrieve") if name in methods), methods[0])
    if against not in methods:
        raise typer.BadParameter(f"--against takes one of {', '.join(methods)}, got {against!r}")
    return against


def _systems(systems: str | None, model: str, reranker: str | None, bm25: Bm25 | None) -> list[str]:
    """The names in --systems, or by default those that the models can run.

    bm25: makes the words that are indexed; None: no words are searched.
    """
    from e2rank_rag.evaluation.systems import METHODS, RERANK

    def reranks() -> bool:
        return reranker is not None or system_of(model) == "resrank"

    if systems is None:
        words = [] if bm25 is None else ["hybrid"]
        return ["retrieve", *words, "rocchio", RERANK if reranks() else "listwise"]
    names = [name.strip() for name in systems.split(",") if name.strip()]
    if not names or set(names) - set(METHODS):
        raise typer.BadParameter(f"--systems takes some of {', '.join(METHODS)}, got {systems!r}")
    if RERANK not in names and reranker is not None:
        raise typer.BadParameter(f"--reranker is the system {RERANK}, which --systems leaves out")
    if RERANK in names and not reranks():
        raise typer.BadParameter(
            f"--systems {RERANK} needs a --reranker, or a ResRank as --model; {model} itself is "
            "measured as listwise"
        )
    searching = [name for name in names if METHODS[name].search in ("words", "hybrid")]
    if bm25 is None and searching:
        raise typer.BadParameter(
            f"--systems {', '.join(searching)} searches words; leave --run and --language none out"
        )
    return names


def _measures(measures: str | None) -> Sequence[str]:
    from e2rank_rag.evaluation.metrics import DEFAULT_MEASURES, parse_measures

    if measures is None:
        return DEFAULT_MEASURES
    # Not at commas within brackets: nDCG(gains={0:0,1:1})@10 is one measure.
    names = [name.strip() for name in re.split(r",(?![^(]*\))", measures) if name.strip()]
    try:
        parse_measures(names)
    except ValueError as error:
        raise typer.BadParameter(f"--measures: {error}") from None
    return names


def _print_results(
    experiment: Experiment,
    results: Mapping[str, SystemResult],
    models: str,
    compared: Differences,
) -> None:
    from e2rank_rag.evaluation.differences import LEVEL
    from e2rank_rag.rendering import systems_table

    title = f"{experiment.name} {experiment.split}, {len(experiment.qrels)} queries, {models}"
    terminal.out.print(systems_table(results, title=title, differences=compared))
    if compared.by_method:
        stars = f"* differs from {compared.against} at p < {LEVEL}"
        counts = f"queries above (+), level (=) and below (-) {compared.against}"
        terminal.say(terminal.out, f"{stars}: paired randomisation, Holm's correction; {counts}")
    if experiment.unread:
        unread = f"{len(experiment.unread):,} of the queries could not be read"
        terminal.say(terminal.out, f"{unread} and count as zero")
    if left_out := max(result.left_out for result in results.values()):
        own = f"{left_out:,} queries are documents of the collection themselves, by id and text"
        terminal.say(terminal.out, f"{own}: these documents were left out of their rankings")
