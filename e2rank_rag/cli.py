"""The command line: it parses, calls the library, prints. `e2rank --help` says what there is."""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from e2rank_rag.models.minilm import DEFAULT_MODEL
from e2rank_rag.training import commands

if TYPE_CHECKING:
    from e2rank_rag.documents import BadRecord
    from e2rank_rag.indexing import IndexReport
    from e2rank_rag.models.encoder import Encoder
    from e2rank_rag.store import QdrantStore

app = typer.Typer(
    name="e2rank",
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
    str, typer.Option("--index", help="A folder, made if need be, or the URL of a Qdrant server.")
]
CollectionName = Annotated[str, typer.Option("--collection", help="Name of the collection in it.")]
Model = Annotated[str, typer.Option("--model", "-m", help=MODEL_HELP)]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...; CUDA if there is one.")]
ApiKey = Annotated[
    str | None, typer.Option("--api-key", envvar="QDRANT_API_KEY", help="Of the Qdrant server.")
]


def main() -> None:
    """Entry point: errors are one line on stderr, with --debug the whole traceback."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    try:
        app(arguments, prog_name="e2rank")
    except Exception as error:
        if debug:
            traceback.print_exc()
        message = " ".join(str(error).split()) or type(error).__name__
        err.print(f"[bold red]error:[/] {escape(message)}", highlight=False, soft_wrap=True)
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
        bool, typer.Option("--prune", help="Delete documents that the source no longer has.")
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

    bad: list[BadRecord] = []

    def report_bad(record: BadRecord) -> None:
        bad.append(record)
        err.print(f"line {record.line}: {escape(record.reason)}", highlight=False, soft_wrap=True)

    source = _corpus(documents)
    with _encoder(model, device) as encoder:
        store = _store(index, collection, api_key)
        try:
            report = index_file(
                source,
                encoder,
                store,
                prune=prune,
                on_bad=report_bad if skip_bad else None,
                progress=True,
            )
        except KeyboardInterrupt:
            err.print(
                f"interrupted: {store.count():,} documents are stored; the same command goes on",
                highlight=False,
            )
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
        str | None, typer.Option("--model", "-m", help="By default the one that wrote the index.")
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, help="How many documents to show.")] = 10,
    retrieve_k: Annotated[int, typer.Option(min=1, help="How many candidates to rerank.")] = 100,
    rerank: Annotated[
        bool, typer.Option("--rerank/--no-rerank", help="Listwise reranking.")
    ] = True,
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
    from e2rank_rag.rendering import hits_table
    from e2rank_rag.rerankers import ListwiseReranker

    if expand and not rerank:
        raise typer.BadParameter("--expand searches with the reranker's vector; drop --no-rerank")
    conditions = parse_filters(filter or [])
    store = _store(index, collection, api_key, must_exist=True)
    try:
        with _encoder(model or store.model or DEFAULT_MODEL, device) as encoder:
            pipeline = SearchPipeline(encoder, store, ListwiseReranker(encoder) if rerank else None)
            hits = pipeline.search(
                query,
                top_k=top_k,
                retrieve_k=max(top_k, retrieve_k),
                filter=conditions or None,
                expand=expand,
            )
    finally:
        store.close()
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
    typer.echo(json.dumps(records, ensure_ascii=False, indent=2))


@app.command()
def evaluate(
    folder: Annotated[
        Path, typer.Argument(help="A BEIR folder: corpus, queries, qrels/SPLIT.tsv.")
    ],
    split: Annotated[str, typer.Option(help="Which judgements to use.")] = "test",
    model: Model = DEFAULT_MODEL,
    systems: Annotated[
        str, typer.Option(help="Comma-separated: retrieve, rocchio, listwise.")
    ] = "retrieve,rocchio,listwise",
    run: Annotated[
        Path | None, typer.Option(help="A TREC run: rank its candidates instead of searching.")
    ] = None,
    qrels: Annotated[
        Path | None, typer.Option(help="Judgements from this file instead of the folder's.")
    ] = None,
    expand: Annotated[
        bool, typer.Option("--expand", help="Rerankers search again with their own vector.")
    ] = False,
    index: Annotated[
        str | None, typer.Option(help="Keep the index here (folder or URL); else in memory.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures to this file.")
    ] = None,
    run_dir: Annotated[Path | None, typer.Option(help="Write a TREC run per system here.")] = None,
    device: Device = None,
    api_key: ApiKey = None,
) -> None:
    """Measure retrieval and reranking on a test collection: nDCG@10, R@100, RR@10."""
    from e2rank_rag.evaluation.report import Experiment, run_experiment
    from e2rank_rag.evaluation.systems import SYSTEMS
    from e2rank_rag.rendering import systems_table

    if run is not None and expand:
        raise typer.BadParameter("--expand searches the collection; with --run nothing is searched")
    names = [name.strip() for name in systems.split(",") if name.strip()]
    if not names or set(names) - set(SYSTEMS):
        raise typer.BadParameter(f"--systems takes some of {', '.join(SYSTEMS)}, got {systems!r}")
    experiment = Experiment.read(folder, split, run=run, qrels=qrels)
    with _encoder(model, device) as encoder:
        store = _store(index or ":memory:", f"{experiment.name}-{encoder.fingerprint[:8]}", api_key)
        try:
            results = run_experiment(
                experiment, encoder, store, names, expand=expand, progress=True
            )
        finally:
            store.close()
    title = f"{experiment.name} {split}, {len(experiment.queries)} queries, {model}"
    out.print(systems_table(results, title=title))
    if json_file is not None:
        experiment.write_json(json_file, results, model=model)
    if run_dir is not None:
        experiment.write_runs(run_dir, results)


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
    out.print(f"agrees with the published cosines: {difference}", highlight=False)


commands.register(app)


def parse_filters(conditions: list[str]) -> dict[str, Any]:
    """`key=value`, `key>=5`, ... as a filter; a key given twice is any-of (=) or a range.

    A value is read as JSON where it is some (5, true, "5"), else as text.
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
        read = json.loads(value, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return value
    return value if isinstance(read, dict) else read


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


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
    out.print(f"{said} in {report.seconds:.1f} s", highlight=False)
    if report.cut:
        out.print(
            f"{report.cut:,} documents were longer than {report.cut_at} tokens and were cut there",
            highlight=False,
        )


def _corpus(path: Path) -> Path:
    from e2rank_rag.evaluation.collections import Collection

    return Collection.open(path).corpus_path if path.is_dir() else path


def _encoder(model: str, device: str | None) -> Encoder:
    with err.status("loading the model"):
        from e2rank_rag.models.encoder import Encoder

        return Encoder.from_pretrained(model, device=device)


def _store(
    location: str, collection: str, api_key: str | None, *, must_exist: bool = False
) -> QdrantStore:
    from e2rank_rag.store import QdrantStore

    local = not location.startswith(("http://", "https://"))
    if must_exist and local and not Path(location).expanduser().is_dir():
        raise FileNotFoundError(f"no index at {location}; make one with `e2rank index`")
    return QdrantStore.open(location, collection, api_key=None if local else api_key)


if __name__ == "__main__":
    main()
