"""Options that several commands share, and what they open."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer

from e2rank_rag import terminal
from e2rank_rag.models.folders import System, system_of

if TYPE_CHECKING:
    from e2rank_rag.documents import BadRecord
    from e2rank_rag.models import runtime
    from e2rank_rag.models.encoder import Encoder
    from e2rank_rag.models.runtime import OpenOptions
    from e2rank_rag.rerankers import BaseReranker
    from e2rank_rag.store import QdrantStore
    from e2rank_rag.words import Bm25

Index = Annotated[
    str,
    typer.Option(
        "--index",
        help="A folder, which is created if missing, or the URL of a Qdrant server. A folder "
        "contains pickles: those that Qdrant did not write are refused.",
    ),
]
CollectionName = Annotated[str, typer.Option("--collection", help="Collection in the index.")]
Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help='Model folder, hub id, "minilm" (all-MiniLM-L6-v2), or "e2rank-minilm" (the same '
        "with a listwise adapter).",
    ),
]
Reranker = Annotated[
    str | None,
    typer.Option(
        "--reranker",
        "-r",
        help="Rerank with this model, such as a cross-encoder. Default: the one in --model.",
    ),
]
RerankerSystem = Annotated[
    str | None,
    typer.Option(
        "--system",
        help="System of a --reranker whose folder does not say it: rankt5 for a T5.",
    ),
]
Split = Annotated[str, typer.Option(help="Which judgements to use.")]
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda, cuda:1, ... Default: CUDA if there is one.")
]
Dtype = Annotated[
    str | None,
    typer.Option(
        help="float32, bfloat16, float16, or auto: bfloat16 where the processor computes in it. "
        "Default: float32 on a CPU, bfloat16 on CUDA.",
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="How many threads compute on the CPU. Default: as many as the process may use.",
    ),
]
ApiKey = Annotated[
    str | None,
    typer.Option(help="API key of the Qdrant server. Default: the variable QDRANT_API_KEY."),
]

Language = Annotated[
    str | None,
    typer.Option(
        "--language",
        help="Language of the texts, whose words are indexed for hybrid search: english, german, "
        "... (Snowball's), or none to index no words. Default: english.",
    ),
]


def check_language(language: str) -> Bm25 | None:
    """What makes words of texts in this language; None for "none".

    Raises BadParameter for an unknown language.
    """
    from e2rank_rag.words import LANGUAGES, Bm25

    if language == "none":
        return None
    if language not in LANGUAGES:
        raise typer.BadParameter(
            f"--language takes none or one of {', '.join(LANGUAGES)}, got {language!r}"
        )
    return Bm25.of(language)


def check_system(reranker: str | None, system: str | None) -> System | None:
    """The value of --system. Raises BadParameter for an unknown one, and without a --reranker."""
    if system is None:
        return None
    if reranker is None:
        raise typer.BadParameter("--system describes a --reranker; name its folder")
    for name in get_args(System):
        if name == system:
            return name  # type: ignore[no-any-return]
    raise typer.BadParameter(f"--system takes one of {', '.join(get_args(System))}, got {system!r}")


def check_expand(expand: bool, reranker: str, system: System | None) -> None:
    """Refuse --expand with a reranker that has no query vector, before any model is loaded."""
    if expand and (kind := system_of(reranker, system)) != "e2rank":
        raise typer.BadParameter(
            f"--expand searches with the reranker's vector, and {reranker} ({kind}) has none; "
            "leave the option out, or rerank with an E2Rank model"
        )


def open_encoder(
    model: str, device: str | None, dtype: str | None = None, threads: int | None = None
) -> Encoder:
    """The embedding model, with a note on stderr while it loads."""
    with terminal.err.status("loading the model"):
        from e2rank_rag.models.encoder import Encoder

        options = opening_options(device, dtype, threads)
        return Encoder.from_pretrained(model, **options)


def open_reranker(
    model: str,
    system: System | None,
    device: str | None,
    dtype: str | None = None,
    threads: int | None = None,
) -> BaseReranker:
    """The reranker, with a note on stderr while it loads."""
    with terminal.err.status("loading the reranker"):
        from e2rank_rag.rerankers import load_reranker

        options = opening_options(device, dtype, threads)
        return load_reranker(model, system=system, **options)


def opening_options(device: str | None, dtype: str | None, threads: int | None) -> OpenOptions:
    """--device, --dtype and --threads as `from_pretrained` takes them, which checks them."""
    return {"device": device, "dtype": cast("runtime.Dtype", dtype), "threads": threads}


def index_name(dataset: str, encoder: Encoder, bm25: Bm25 | None) -> str:
    """The collection of a dataset that is measured: another one for another encoder or language."""
    language = "" if bm25 is None else f"-{bm25.language}"
    return f"{dataset}-{encoder.fingerprint[:8]}{language}"


def open_store(
    location: str,
    collection: str,
    api_key: str | None,
    *,
    must_exist: bool = False,
    bm25: Bm25 | None = None,
) -> QdrantStore:
    """The collection. Raises FileNotFoundError for a missing folder if it `must_exist`.

    bm25: makes the words of a new collection; None: a new collection has none.
    """
    from e2rank_rag.store import QdrantStore
    from e2rank_rag.store.opening import kind_of

    server = kind_of(location) == "server"
    if must_exist and not server and not Path(location).expanduser().is_dir():
        raise FileNotFoundError(f"no index at {location}; make one with `e2rank index`")
    if server and api_key is None:
        api_key = os.environ.get("QDRANT_API_KEY")
    return QdrantStore.open(location, collection, api_key=api_key, bm25=bm25)


def report_bad(record: BadRecord) -> None:
    """Print why a record was skipped."""
    terminal.say(terminal.err, f"line {record.line}: {record.reason}")
