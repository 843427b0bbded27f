"""Encoding documents: this library against sentence-transformers, in alternating pairs.

Every side encodes the same texts at the same length with the same number of threads, in a process
of its own. sentence-transformers runs as it comes (batches of 32) and at its best batch size of 8,
32 and 128, which is found first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import median
from typing import Any

from e2rank_rag.bench.context import Context
from e2rank_rag.bench.flops import forward_flops
from e2rank_rag.bench.machine import hardware_dtypes
from e2rank_rag.bench.pairs import Round, Timed, alternate, ratio, spread
from e2rank_rag.bench.searching import (
    about_encoder,
    first_documents,
    open_encoder,
    open_sentence_transformer,
    weights_folder,
)
from e2rank_rag.bench.settings import MAX_LENGTH, threads_environment
from e2rank_rag.bench.sides import Answer, Side, Sides
from e2rank_rag.bench.tables import Table, cells, span

BATCH_SIZES = (8, 32, 128)
DEFAULT_BATCH = 32
_PRECISIONS = {"bf16": "bfloat16", "f32": "float32", "f16": "float16"}

COMPARED = 64
"""Documents whose vectors are compared."""

OURS, THEIRS = "e2rank_rag", "sentence-transformers"


def measure(context: Context) -> dict[str, Any]:
    """The figures by number of threads: one, and all of the settings."""
    results = [_with(context, threads) for threads in sorted({1, context.settings.threads})]
    return {"max_length": MAX_LENGTH, "by_threads": results}


def _with(context: Context, threads: int) -> dict[str, Any]:
    context.say(f"encode: {threads} thread{'s' * (threads > 1)}")
    options = {**context.model_options, "documents": context.settings.sizes.documents}
    environment = threads_environment(threads)
    with Sides(context.start) as sides:
        calls: dict[str, Callable[[], Timed]] = {}
        for dtype in our_dtypes():
            name = f"{OURS} {dtype}"
            side = sides.add(name, f"{__name__}:ours", {**options, "dtype": dtype}, environment)
            assert side is not None
            side()  # chooses kernels for these shapes
            calls[name] = side
        batches = {}
        for kind in their_kinds():
            name = f"{THEIRS} {kind}"
            side = sides.add(name, f"{__name__}:theirs", {**options, "kind": kind}, environment)
            if side is None:
                continue
            batches[name] = _best_batch(side)
            calls[name] = partial(side, batch_size=batches[name])
            if kind == "float32":
                batches[f"{name}, as it comes"] = DEFAULT_BATCH
                calls[f"{name}, as it comes"] = partial(side, batch_size=DEFAULT_BATCH)
        rounds = alternate(calls, context.settings.sizes.rounds)
        cosines = _lowest_cosines(sides)
        about = sides.about()
    rows = {
        name: _row(context, about[name.removesuffix(", as it comes")], name, rounds)
        for name in calls
    }
    for name, size in batches.items():
        rows[name]["batch_size"] = size
    return {
        "threads": threads,
        "sides": rows,
        "ratios": _ratios(rounds),
        "lowest_cosine_to_float32": cosines,
        "missing": sides.missing,
    }


def our_dtypes() -> list[str]:
    """The values of `dtype` that are measured: bfloat16 where the processor has it."""
    return [*hardware_dtypes(), "auto"]


def their_kinds() -> list[str]:
    """The ways of sentence-transformers that are measured."""
    return [*hardware_dtypes(), "openvino"]


def _best_batch(side: Side) -> int:
    side(batch_size=DEFAULT_BATCH)  # chooses kernels
    return min(BATCH_SIZES, key=lambda size: side(batch_size=size).wall)


def _row(
    context: Context, about: Mapping[str, Any], name: str, rounds: Sequence[Round]
) -> dict[str, Any]:
    walls = [each[name].wall for each in rounds]
    rate = about["flops"] / median(walls) / 1e9
    return {
        **about,
        "wall": spread(walls),
        "process": spread([each[name].process for each in rounds]),
        "documents_per_second": about["documents"] / median(walls),
        "gflops": rate,
        "share_of_peak": context.share(rate, about["dtype"], about["threads"]),
    }


def _ratios(rounds: Sequence[Round]) -> list[dict[str, Any]]:
    """Ours against theirs of the same dtype, and `auto` against their default and their best."""
    names = list(rounds[0])
    theirs = [name for name in names if name.startswith(THEIRS)]
    if not theirs:
        return []
    fastest = min(theirs, key=lambda name: median(each[name].wall for each in rounds))
    wanted = [(f"{OURS} {dtype}", f"{THEIRS} {dtype}") for dtype in ("float32", "bfloat16")]
    wanted += [
        (f"{OURS} auto", f"{THEIRS} float32, as it comes"),
        (f"{OURS} auto", fastest),
    ]
    return [
        {
            "faster": ours,
            "slower": other,
            "wall": ratio(rounds, ours, other),
            "process": ratio(rounds, ours, other, "process"),
        }
        for ours, other in dict.fromkeys(wanted)
        if ours in names and other in names
    ]


def _lowest_cosines(sides: Sides) -> dict[str, float]:
    """By side: the lowest cosine of a vector with ours in float32."""
    import numpy as np

    def unit(side: Side) -> Any:
        vectors = np.array(side(vectors=COMPARED).result)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    vectors = {name: unit(side) for name, side in sides.started.items()}
    known = vectors[f"{OURS} float32"]
    return {
        name: float((others * known).sum(axis=1).min())
        for name, others in vectors.items()
        if name != f"{OURS} float32"
    }


def ours(model: str, data: str | None, documents: int, dtype: str) -> tuple[dict[str, Any], Answer]:
    """A side that encodes with this library."""

    encoder = open_encoder(model, dtype)
    texts = [document.text for document in first_documents(data, documents)]
    lengths = [len(row.ids) for row in encoder.tokenizer.documents(texts)]
    about = {
        **about_encoder(encoder),
        "documents": len(texts),
        "tokens": sum(lengths),
        "flops": forward_flops(encoder.loaded.transformer.config, lengths),
    }

    def answer(vectors: int | None = None) -> Any:
        if vectors:
            return encoder.encode_documents(texts[:vectors], on_cut=_ignore).tolist()
        encoder.encode_documents(texts, on_cut=_ignore, progress=False)
        return None

    return about, answer


def theirs(
    model: str, data: str | None, documents: int, kind: str
) -> tuple[dict[str, Any], Answer]:
    """A side that encodes with sentence-transformers.

    kind: "openvino", or the dtype of its torch backend.
    """
    import torch
    from transformers import AutoConfig

    folder = weights_folder(model)
    encoder = open_sentence_transformer(folder, kind)
    limit = encoder.max_seq_length
    texts = [document.text for document in first_documents(data, documents)]
    lengths = [
        len(ids) for ids in encoder.tokenizer(texts, truncation=True, max_length=limit)["input_ids"]
    ]
    about = {
        "threads": torch.get_num_threads(),
        **(_about_openvino(encoder) if kind == "openvino" else {"dtype": kind}),
        "max_length": limit,
        "documents": len(texts),
        "tokens": sum(lengths),
        "flops": forward_flops(AutoConfig.from_pretrained(folder), lengths),
    }

    def answer(batch_size: int = DEFAULT_BATCH, vectors: int | None = None) -> Any:
        some = texts[:vectors] if vectors else texts
        found = encoder.encode(some, batch_size=batch_size, show_progress_bar=False)
        return found.tolist() if vectors else None

    return about, answer


def _about_openvino(encoder: Any) -> dict[str, Any]:
    """The dtype that OpenVINO chose for this processor, and its threads."""
    encoder.encode(["compiled at the first text"], show_progress_bar=False)
    compiled = encoder[0].model.request
    precision = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    return {
        "dtype": _PRECISIONS.get(precision, precision),
        "threads": compiled.get_property("INFERENCE_NUM_THREADS"),
    }


def _ignore(_: object) -> None:
    """The cut documents are no news here."""


def tables(result: Mapping[str, Any]) -> list[Table]:
    """Seconds and shares of each side, and the ratios."""
    found = []
    for part in result["by_threads"]:
        threads = part["threads"]
        rows = [
            [
                name,
                row["dtype"],
                str(row.get("batch_size", "by tokens")),
                f"{row['wall']['median']:.2f}",
                f"{row['process']['median']:.2f}",
                f"{row['documents_per_second']:.0f}",
                f"{row['gflops']:.0f}",
                cells(row["share_of_peak"]),
                cells(part["lowest_cosine_to_float32"].get(name), 5),
            ]
            for name, row in part["sides"].items()
        ]
        first = next(iter(part["sides"].values()))
        title = (
            f"Encoding {first['documents']} documents, {first['tokens']:,} tokens, at most "
            f"{first['max_length']} each; threads: {threads}"
        )
        head = "side|dtype|batch|wall s|process s|documents/s|GFLOP/s|of peak|lowest cosine"
        found.append(Table(title, head.split("|"), rows, part["missing"]))
        ratios = [
            [each["faster"], each["slower"], *span(each["wall"]), *span(each["process"])]
            for each in part["ratios"]
        ]
        head = "times as fast|as|worst|median|best|process: worst|median|best"
        found.append(Table(f"Pairs, threads: {threads}", head.split("|"), ratios))
    return found
