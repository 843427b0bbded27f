"""`e2rank mine`, `e2rank train`, `e2rank adapt` and `e2rank average`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from e2rank_rag import terminal
from e2rank_rag.cli.options import Device, Dtype, Threads, open_encoder

Settings = Annotated[
    list[str] | None,
    typer.Argument(help="key=value or block.key=value, in place of the configuration's."),
]


def mine(
    folder: Annotated[
        Path, typer.Argument(help="A BEIR folder (corpus, queries, qrels), or a file of pairs.")
    ],
    output: Annotated[Path, typer.Argument(help="The lists: .jsonl or .jsonl.gz.")],
    split: Annotated[
        str | None, typer.Option(help="Which judgements of a folder to use; default: train.")
    ] = None,
    model: Annotated[
        str, typer.Option("--model", "-m", help='Finds the candidates: folder, hub id, "minilm".')
    ] = "minilm",
    depth: Annotated[int, typer.Option(min=2, help="Candidates per query.")] = 100,
    first_negative: Annotated[
        int, typer.Option(min=0, help="Leave out unjudged documents found before this place.")
    ] = 0,
    corpus: Annotated[
        Path | None, typer.Option(help="Documents to mine beside those of a file of pairs.")
    ] = None,
    hybrid: Annotated[
        bool, typer.Option("--hybrid", help="Fuse what cosines and what BM25 finds.")
    ] = False,
    language: Annotated[
        str | None, typer.Option(help="Language of the words for --hybrid; default: english.")
    ] = None,
    texts: Annotated[
        bool, typer.Option("--texts/--ids", help="Write the texts, or ids into the corpus.")
    ] = True,
    device: Device = None,
    dtype: Dtype = None,
    threads: Threads = None,
) -> None:
    """Build training lists: the documents a search retrieves, labelled by the judgements."""
    from e2rank_rag.training.config import Source
    from e2rank_rag.training.examples import write_examples
    from e2rank_rag.training.sources import Judged, mined

    _refuse_corpus_of_folder(folder, corpus)
    _refuse_split_of_file(folder, split)
    if language is not None and not hybrid:
        raise typer.BadParameter(f"--language {language} is for --hybrid: give both")
    given: dict[str, Any] = {"path": folder, "corpus": corpus, "mine": folder.is_file()}
    given |= {"depth": depth, "first_negative": first_negative, "split": split}
    given |= {"candidates": "hybrid" if hybrid else "dense", "language": language}
    source = Source(**{name: value for name, value in given.items() if value is not None})
    judged = Judged.read(source, 0)
    with open_encoder(model, device, dtype, threads) as encoder:
        lists = mined(source, judged, encoder, None, add_missing=True)
    write_examples(output, lists.values(), texts=texts)
    terminal.say(
        terminal.out, f"{len(lists):,} lists of {len(judged.queries):,} queries in {output}"
    )


def _print_config_help(wanted: bool) -> None:
    if wanted:
        from e2rank_rag.training.config_help import config_help

        typer.echo(config_help())
        raise typer.Exit


def train(
    config: Annotated[Path, typer.Argument(help="A YAML file: one stage of training.")],
    settings: Settings = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest checkpoint.")
    ] = False,
    help_config: Annotated[
        bool,
        typer.Option(
            "--help-config",
            help="Print every field of a configuration and exit.",
            is_eager=True,
            callback=_print_config_help,
        ),
    ] = False,
) -> None:
    """Train a model as a configuration says. With torchrun on several devices."""
    from e2rank_rag.distributed import process
    from e2rank_rag.training import read_config
    from e2rank_rag.training import train as train_stage

    folder = train_stage(read_config(config, settings or ()), resume=resume)
    if process() == 0:
        terminal.say(
            terminal.out, f"the model is in {folder}, the record of the run in {folder / 'run'}"
        )


def adapt(
    base: Annotated[str, typer.Argument(help='The model of your index: folder, hub id, "minilm".')],
    data: Annotated[
        Path, typer.Argument(help="A BEIR folder with a train split, or a file of examples.")
    ],
    output: Annotated[Path, typer.Argument(help="Folder for the adapted model.")],
    dev: Annotated[
        Path | None,
        typer.Option(help="Measure on this while training; default: the dev split of a folder."),
    ] = None,
    mine: Annotated[
        bool,
        typer.Option(
            "--mine/--as-they-are",
            help="Mine lists from all documents of a file of pairs, or take its lists as they are.",
        ),
    ] = True,
    corpus: Annotated[
        Path | None,
        typer.Option(help="Documents of your index, to mine beside those of a file of pairs."),
    ] = None,
    settings: Settings = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest checkpoint.")
    ] = False,
) -> None:
    """Give an embedding model a listwise adapter: its index stays, nothing is indexed again."""
    from e2rank_rag.distributed import process
    from e2rank_rag.models.folders import model_name
    from e2rank_rag.training import train as train_stage
    from e2rank_rag.training.adapter_config import adapter_sources
    from e2rank_rag.training.config import ADAPTER_CONFIG, read_config

    _refuse_corpus_of_folder(data, corpus)
    given = adapter_sources(base, data, output, dev, mine=mine, corpus=corpus)
    folder = train_stage(read_config(ADAPTER_CONFIG, settings or (), given), resume=resume)
    if process() == 0:
        named = model_name(folder)  # "./minilm" of a folder that is called as what ships
        terminal.say(
            terminal.out, f"the model is in {named}: name it where your pipeline names {base}"
        )


def average(
    models: Annotated[
        list[str], typer.Argument(help="Models with a listwise adapter, all of one base.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the new model.")],
    scale: Annotated[
        float, typer.Option(min=0.0, help="Factor of the mean; 0.5 of one adapter is half of it.")
    ] = 1.0,
) -> None:
    """Average listwise adapters, or scale one: a new model over the same index."""
    from e2rank_rag.models.adapter_average import average_adapters
    from e2rank_rag.models.folders import model_name

    folder = average_adapters(models, output, scale=scale)
    terminal.say(
        terminal.out,
        f"the model is in {model_name(folder)}: {scale:g} times the mean of {len(models)}",
    )


def _refuse_split_of_file(data: Path, split: str | None) -> None:
    if split is not None and not data.is_dir():
        raise typer.BadParameter(f"--split {split}: {data} is no BEIR folder; leave it out")


def _refuse_corpus_of_folder(data: Path, corpus: Path | None) -> None:
    if corpus is not None and data.is_dir():
        raise typer.BadParameter(
            f"--corpus {corpus}: {data} is a BEIR folder, which has a corpus of its own; leave the "
            "option out"
        )
