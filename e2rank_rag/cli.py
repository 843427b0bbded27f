"""The command line: it parses, calls the library, prints. `e2rank --help` lists the commands."""

from __future__ import annotations

import os
import re
import shlex
import sys
import traceback
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from e2rank_rag.conditions import parse_filters
from e2rank_rag.models.minilm import DEFAULT_MODEL, SHIPPED_MODELS
from e2rank_rag.recipe import System, system_of
from e2rank_rag.terminal import json_text, printable_lines, printable_logs, printable_usage, say
from e2rank_rag.training import commands

if TYPE_CHECKING:
    from e2rank_rag.documents import BadRecord
    from e2rank_rag.evaluation.report import Experiment
    from e2rank_rag.evaluation.systems import SystemResult
    from e2rank_rag.indexing import IndexReport
    from e2rank_rag.models.encoder import Encoder
    from e2rank_rag.rerankers import BaseReranker
    from e2rank_rag.store import QdrantStore
    from e2rank_rag.types import Hit


class _Group(TyperGroup):
    """Wrong usage is told in the words of the command line, which may hold anything too."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        with printable_usage():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        with printable_usage():
            return super().invoke(ctx)


app = typer.Typer(
    name="e2rank",
    cls=_Group,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Index, search and rerank documents with one embedding model. Try `e2rank demo` first.",
    epilog="Exit codes: 0 done, 1 failed, 2 wrong usage. --debug shows the traceback of a failure.",
)
out = Console()
err = Console(stderr=True)

MODEL_HELP = (
    'A model folder, a hub id, "minilm" (all-MiniLM-L6-v2), or "e2rank-minilm" (that with a '
    "listwise adapter)."
)
Index = Annotated[
    str,
    typer.Option(
        "--index",
        help="A folder, made if need be, or the URL of a Qdrant server. A folder holds pickles: "
        "those that are not Qdrant's own are refused.",
    ),
]
CollectionName = Annotated[str, typer.Option("--collection", help="Name of the collection in it.")]
Model = Annotated[str, typer.Option("--model", "-m", help=MODEL_HELP)]
Reranker = Annotated[
    str | None,
    typer.Option(
        "--reranker", "-r", help="Rerank with this model, such as a RankT5; else --model."
    ),
]
RerankerSystem = Annotated[
    str | None,
    typer.Option(
        "--system", help="Of a --reranker without e2rank.json: rankt5, for a T5 or cross-encoder."
    ),
]
BeirFolder = Annotated[
    Path, typer.Argument(help="A BEIR folder: corpus, queries, qrels/SPLIT.tsv.")
]
Systems = Annotated[
    str | None,
    typer.Option(
        help="Comma-separated: retrieve, rocchio, listwise, and rerank (the --reranker, or a "
        "ResRank's own). By default the first two and the one that the models are for.",
    ),
]
Measures = Annotated[
    str | None, typer.Option(help="Comma-separated, as ir-measures has them: nDCG@5,AP,RR@10.")
]
RunFile = Annotated[
    Path | None, typer.Option(help="A TREC run: rank its candidates instead of searching.")
]
QrelsFile = Annotated[
    Path | None, typer.Option(help="Judgements from this file instead of the folder's.")
]
KeptIndex = Annotated[
    str | None, typer.Option(help="Keep the index here (folder or URL); else in memory.")
]
FiguresFile = Annotated[Path | None, typer.Option("--json", help="Write the figures to this file.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...; CUDA if there is one.")]
ApiKey = Annotated[
    str | None, typer.Option(help="Of the Qdrant server; else QDRANT_API_KEY of the environment.")
]


def main() -> None:
    """Entry point: errors are one line on stderr, with --debug the whole traceback."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    try:
        with printable_logs():
            app(arguments, prog_name="e2rank")
    except Exception as error:
        if debug:
            err.print(Text(printable_lines(traceback.format_exc())), soft_wrap=True, end="")
        say(err, " ".join(str(error).split()) or type(error).__name__, label="error:")
        sys.exit(1)


@app.callback()
def common(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
) -> None:
    """Taken out of the arguments by `main`, so that it may stand anywhere; declared for --help."""


@app.command()
def demo(
    model: Model = DEFAULT_MODEL,
    index: Annotated[Path | None, typer.Option(help="Folder for the index.")] = None,
) -> None:
    """Index SciFact (it ships with the package), search it, rerank, and measure."""
    from e2rank_rag.demo import run_demo

    run_demo(out, model=model, folder=index)


@app.command()
def index(
    documents: Annotated[
        Path, typer.Argument(help="JSON lines with _id, text and title; .gz too; or a BEIR folder.")
    ],
    index: Index,
    collection: CollectionName = "documents",
    model: Model = DEFAULT_MODEL,
    prune: Annotated[
        bool, typer.Option("--prune", help="Delete documents that the file no longer has.")
    ] = False,
    skip_bad: Annotated[
        bool,
        typer.Option("--skip-bad", help="Report bad records and go on; else the first ends it."),
    ] = False,
    device: Device = None,
    api_key: ApiKey = None,
) -> None:
    """Put documents into an index. Run it again to add, change and (--prune) remove documents."""
    from e2rank_rag.indexing import index_file

    source = _corpus(documents)
    with _encoder(model, device) as encoder:
        store = _store(index, collection, api_key)
        try:
            report = index_file(
                source,
                encoder,
                store,
                prune=prune,
                on_bad=_say_bad if skip_bad else None,
                progress=True,
            )
        except KeyboardInterrupt:
            said = f"interrupted: {store.count():,} documents are stored"
            say(err, f"{said}; the same command goes on")
            raise typer.Exit(1) from None
        finally:
            store.close()
    _say_indexed(report)


@app.command()
def search(
    query: Annotated[str, typer.Argument(help="What to look for.")],
    index: Index,
    collection: CollectionName = "documents",
    model: Annotated[
        str | None,
        typer.Option(
            "--model", "-m", help="By default the one that wrote the index, if it ships here."
        ),
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, help="How many documents to show.")] = 10,
    retrieve_k: Annotated[int, typer.Option(min=1, help="How many candidates to rerank.")] = 100,
    rerank: Annotated[
        bool, typer.Option("--rerank/--no-rerank", help="Rerank the retrieved documents.")
    ] = True,
    reranker: Reranker = None,
    system: RerankerSystem = None,
    expand: Annotated[
        bool, typer.Option("--expand", help="Search a second time with the listwise vector.")
    ] = False,
    filter: Annotated[
        list[str] | None,
        typer.Option(help='On meta: key=value, key>=5, key<9; key="5" for the text 5. Repeatable.'),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    device: Device = None,
    api_key: ApiKey = None,
) -> None:
    """Search an index and rerank what was found."""
    from e2rank_rag.pipeline import SearchPipeline

    if expand and not rerank:
        raise typer.BadParameter("--expand searches with the reranker's vector; drop --no-rerank")
    if reranker and not rerank:
        raise typer.BadParameter("--reranker reranks; drop --no-rerank")
    stated = _stated_system(reranker, system)
    conditions = parse_filters(filter or [])
    with ExitStack() as opened:
        store = _store(index, collection, api_key, must_exist=True)
        opened.callback(store.close)
        searching = model or _model_of(store)
        _check_expand(expand, reranker or searching, stated)
        encoder = opened.enter_context(_encoder(searching, device))
        ranker = None
        if rerank:
            ranker = opened.enter_context(_reranker(reranker or searching, stated, device))
        hits = SearchPipeline(encoder, store, ranker).search(
            query,
            top_k=top_k,
            retrieve_k=max(top_k, retrieve_k),
            filter=conditions or None,
            expand=expand,
        )
    _say_hits(hits, query, as_json=as_json)


@app.command()
def evaluate(
    folder: BeirFolder,
    split: Annotated[str, typer.Option(help="Which judgements to use.")] = "test",
    model: Model = DEFAULT_MODEL,
    reranker: Reranker = None,
    system: RerankerSystem = None,
    systems: Systems = None,
    measures: Measures = None,
    run: RunFile = None,
    qrels: QrelsFile = None,
    expand: Annotated[
        bool, typer.Option("--expand", help="Rerankers search again with their own vector.")
    ] = False,
    index: KeptIndex = None,
    json_file: FiguresFile = None,
    run_dir: Annotated[Path | None, typer.Option(help="Write a TREC run per system here.")] = None,
    skip_bad: Annotated[
        bool,
        typer.Option("--skip-bad", help="Report bad queries, such as empty ones: they count as 0."),
    ] = False,
    device: Device = None,
    api_key: ApiKey = None,
) -> None:
    """Measure retrieval and reranking on a test collection: nDCG@10, R@100, RR@10, or others."""
    from e2rank_rag.evaluation.report import Experiment, run_experiment

    if run is not None and expand:
        raise typer.BadParameter("--expand searches the collection; with --run nothing is searched")
    stated = _stated_system(reranker, system)
    asked, names = _measures(measures), _systems(systems, model, reranker)
    ranking = (reranker or model) if "rerank" in names else None
    if ranking is not None:
        _check_expand(expand, ranking, stated)
    on_bad = _say_bad if skip_bad else None
    experiment = Experiment.read(folder, split, run=run, qrels=qrels, on_bad=on_bad)
    experiment.check_outputs(json_file, run_dir)
    with ExitStack() as opened:
        encoder = opened.enter_context(_encoder(model, device))
        ranker = None
        if ranking is not None:
            ranker = opened.enter_context(_reranker(ranking, stated, device))
        name = f"{experiment.name}-{encoder.fingerprint[:8]}"
        store = _store(index or ":memory:", name, api_key)
        opened.callback(store.close)
        results = run_experiment(
            experiment,
            encoder,
            store,
            names,
            reranker=ranker,
            expand=expand,
            measures=asked,
            progress=True,
        )
    _say_results(experiment, results, model, reranker, json_file, run_dir)


@app.command()
def verify(
    model: Annotated[str, typer.Argument(help="A released E2Rank model: hub id or folder.")],
    device: Device = None,
) -> None:
    """Hold a released E2Rank model against the cosines that its authors published."""
    from e2rank_rag.rendering import verification_table
    from e2rank_rag.verify import TOLERANCE, verify

    with _encoder(model, device) as encoder:
        result = verify(encoder)
    out.print(verification_table(result))
    difference = f"largest difference {result.largest_difference:.4f}, tolerance {TOLERANCE}"
    if not result.agrees:
        raise ValueError(f"the cosines are not the published ones: {difference}")
    say(out, f"agrees with the published cosines: {difference}")


commands.register(app)


def _systems(systems: str | None, model: str, reranker: str | None) -> list[str]:
    """The names in --systems, or those that these models make sense of."""
    from e2rank_rag.evaluation.systems import RERANK, SYSTEMS

    def reranks() -> bool:
        return reranker is not None or system_of(model) == "resrank"

    if systems is None:
        return ["retrieve", "rocchio", RERANK if reranks() else "listwise"]
    names = [name.strip() for name in systems.split(",") if name.strip()]
    accepted = (*SYSTEMS, RERANK)
    if not names or set(names) - set(accepted):
        raise typer.BadParameter(f"--systems takes some of {', '.join(accepted)}, got {systems!r}")
    if RERANK not in names and reranker is not None:
        raise typer.BadParameter(f"--reranker is the system {RERANK}, which --systems leaves out")
    if RERANK in names and not reranks():
        raise typer.BadParameter(
            f"--systems {RERANK} needs a --reranker, or a ResRank as --model; {model} itself is "
            "measured as listwise"
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


def _stated_system(reranker: str | None, system: str | None) -> System | None:
    if system is None:
        return None
    if reranker is None:
        raise typer.BadParameter("--system is of a --reranker; name its folder")
    for name in get_args(System):
        if name == system:
            return name  # type: ignore[no-any-return]
    raise typer.BadParameter(f"--system takes one of {', '.join(get_args(System))}, got {system!r}")


def _check_expand(expand: bool, reranker: str, stated: System | None) -> None:
    """Before anything is loaded."""
    if expand and (found := system_of(reranker, stated)) != "e2rank":
        raise typer.BadParameter(
            f"--expand searches with the reranker's vector, and {reranker} ({found}) has none; "
            "leave it out, or rerank with an E2Rank"
        )


def _say_bad(record: BadRecord) -> None:
    say(err, f"line {record.line}: {record.reason}")


def _say_hits(hits: Sequence[Hit], query: str, *, as_json: bool) -> None:
    from e2rank_rag.rendering import hits_table

    if not as_json:
        out.print(hits_table(hits, title=query))
        return
    records = [
        {
            "id": hit.document.id,
            "score": hit.score,
            "text": hit.document.text,
            "meta": dict(hit.document.meta),
        }
        for hit in hits
    ]
    typer.echo(json_text(records))


def _say_results(
    experiment: Experiment,
    results: Mapping[str, SystemResult],
    model: str,
    reranker: str | None,
    json_file: Path | None,
    run_dir: Path | None,
) -> None:
    from e2rank_rag.rendering import systems_table

    by = f", reranked by {reranker}" if reranker else ""
    count = len(experiment.qrels)
    title = f"{experiment.name} {experiment.split}, {count} queries, {model}{by}"
    out.print(systems_table(results, title=title))
    if experiment.unread:
        unread = len(experiment.unread)
        say(out, f"{unread:,} of the queries could not be read and count as zero")
    if left_out := max(result.left_out for result in results.values()):
        said = f"{left_out:,} queries are documents of the collection themselves, by id and text"
        say(out, f"{said}: these documents were left out of their rankings")
    if json_file is not None:
        experiment.write_json(json_file, results, model=model, reranker=reranker)
    if run_dir is not None:
        experiment.write_runs(run_dir, results)


def _say_indexed(report: IndexReport) -> None:
    counts = {
        "added": report.added,
        "updated": report.updated,
        "meta updated": report.meta_updated,
        "unchanged": report.unchanged,
        "skipped": report.skipped,
        "pruned": report.pruned,
    }
    said = ", ".join(f"{count:,} {name}" for name, count in counts.items() if count)
    say(out, f"{said} in {report.seconds:.1f} s")
    if report.cut:
        said = f"{report.cut:,} documents were longer than {report.cut_at} tokens"
        say(out, f"{said} and were cut there")


def _corpus(path: Path) -> Path:
    from e2rank_rag.evaluation.collections import Collection

    return Collection.open(path).corpus_path if path.is_dir() else path


def _encoder(model: str, device: str | None) -> Encoder:
    with err.status("loading the model"):
        from e2rank_rag.models.encoder import Encoder

        return Encoder.from_pretrained(model, device=device)


def _reranker(model: str, system: System | None, device: str | None) -> BaseReranker:
    with err.status("loading the reranker"):
        from e2rank_rag.rerankers import load_reranker

        return load_reranker(model, system=system, device=device)


def _store(
    location: str, collection: str, api_key: str | None, *, must_exist: bool = False
) -> QdrantStore:
    from e2rank_rag.store import QdrantStore
    from e2rank_rag.store.opening import kind_of

    server = kind_of(location) == "server"
    if must_exist and not server and not Path(location).expanduser().is_dir():
        raise FileNotFoundError(f"no index at {location}; make one with `e2rank index`")
    if server and api_key is None:
        api_key = os.environ.get("QDRANT_API_KEY")
    return QdrantStore.open(location, collection, api_key=api_key)


def _model_of(store: QdrantStore) -> str:
    """The model that wrote an index, where opening it can do no harm: one of those that ship.

    ValueError for any other, with the option that opens it.
    """
    recorded = store.model
    if recorded is None or recorded in SHIPPED_MODELS:
        return recorded or DEFAULT_MODEL
    raise ValueError(
        f"{store.name} says that {recorded!r} wrote it; whoever made the index chose that name, "
        f"so it is not opened by itself: if you trust it, add: {shlex.join(['--model', recorded])}"
    )


if __name__ == "__main__":
    main()
