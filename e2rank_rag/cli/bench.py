"""`e2rank bench`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from e2rank_rag import terminal
from e2rank_rag.cli.options import Model, Threads
from e2rank_rag.models.shipped import DEFAULT_MODEL


def bench(
    only: Annotated[
        str | None,
        typer.Option(
            help="Parts to measure, separated by commas: encode, query, candidates, depth, "
            "engines, pools, neighbour. Default: all."
        ),
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="More of everything: an hour or more.")
    ] = False,
    threads: Threads = None,
    model: Model = DEFAULT_MODEL,
    data: Annotated[
        Path | None, typer.Option(help="BEIR folder to measure with. Default: SciFact.")
    ] = None,
    url: Annotated[
        str | None, typer.Option(help="Qdrant server for the part engines, written to and cleared.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures to this file.")
    ] = None,
    plots: Annotated[
        Path | None, typer.Option(help="Write a picture of each part to this folder, as SVG.")
    ] = None,
) -> None:
    """Measure speed on this machine, against other libraries and the processor's peak."""
    from e2rank_rag import bench as parts
    from e2rank_rag.bench.pools import check
    from e2rank_rag.bench.settings import FULL, Settings, Sizes
    from e2rank_rag.threads import usable_threads

    chosen = _chosen(only, parts.PARTS)
    _check_places(data, json_file, plots)
    settings = Settings(
        threads=threads or usable_threads(),
        model=model,
        data=data,
        url=url,
        sizes=FULL if full else Sizes(),
    )
    with terminal.err.status("") as status:
        result = parts.run_bench(
            settings,
            chosen,
            say=lambda text: status.update(terminal.printable(text)),
            keep=lambda result: _keep(result, json_file),
        )
    for table in parts.tables(result):
        table.show(terminal.out)
    if plots is not None:
        from e2rank_rag.bench.plots import draw

        for path in draw(result, plots):
            terminal.say(terminal.err, f"wrote {path}")
    if "pools" in result["parts"]:
        check(result["parts"]["pools"])


def _check_places(data: Path | None, json_file: Path | None, plots: Path | None) -> None:
    """Read from and make what the options name, so that errors come before measuring."""
    if data is not None:
        from e2rank_rag.evaluation.collections import Collection

        Collection.open(data)
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        if json_file.is_dir():
            raise IsADirectoryError(f"{json_file} is a folder; name a file in it for the figures")
    if plots is not None:
        from e2rank_rag.bench.plots import check_matplotlib

        check_matplotlib()
        plots.mkdir(parents=True, exist_ok=True)


def _keep(result: Mapping[str, Any], json_file: Path | None) -> None:
    """Write the figures so far, whole."""
    from e2rank_rag.models.files import new_files, write_json

    if json_file is not None:
        with new_files(json_file.parent) as folder:
            write_json(folder / json_file.name, result)


def _chosen(only: str | None, known: tuple[str, ...]) -> tuple[str, ...]:
    """The parts that --only names, in the order of `known`."""
    if only is None:
        return known
    names = [name.strip() for name in only.split(",")]
    for name in names:
        if name not in known:
            raise typer.BadParameter(f"--only takes {', '.join(known)}, got {name!r}")
    return tuple(name for name in known if name in names)
