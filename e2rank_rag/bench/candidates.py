"""Query text to ten documents by number of candidates, the fetch included, against cross-encoders.

All sides search the same vectors in memory, and rerank the same number of candidates with models of
the same shape, dtype and length. The others' cross-encoder has the encoder's weights and a random
head: its time is that of a trained one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import islice
from statistics import fmean
from typing import TYPE_CHECKING, Any

from e2rank_rag.bench.context import Context
from e2rank_rag.bench.machine import hardware_dtypes
from e2rank_rag.bench.pairs import Round, Timed, alternate, ratio, spread
from e2rank_rag.bench.searching import about_encoder, open_encoder, open_index, queries_of, stored
from e2rank_rag.bench.settings import MAX_LENGTH
from e2rank_rag.bench.sides import Answer, Sides
from e2rank_rag.bench.tables import Table, cells, span

if TYPE_CHECKING:
    from e2rank_rag.rerankers import BaseReranker

OURS, CROSS_ENCODER = "e2rank_rag", "sentence-transformers CrossEncoder"
PROMPTLESS = "e2rank_rag without a prompt"
SIDES = {
    OURS: f"{__name__}:ours",
    PROMPTLESS: f"{__name__}:promptless",
    CROSS_ENCODER: "e2rank_rag.bench.chains:sentence_transformers",
    "Haystack": "e2rank_rag.bench.chains:haystack",
    "LangChain": "e2rank_rag.bench.chains:langchain",
}
TOP_K = 10


def measure(context: Context) -> dict[str, Any]:
    """The figures by dtype: float32, and bfloat16 where the processor has it."""
    dtypes = hardware_dtypes()
    found = [_with(context, dtype) for dtype in dtypes]
    return {"top_k": TOP_K, "max_length": MAX_LENGTH, "by_dtype": found}


def _with(context: Context, dtype: str) -> dict[str, Any]:
    sizes = context.settings.sizes
    options = {**context.prepared, "dtype": dtype, "queries": sizes.chain_queries}
    by_count: dict[str, Any] = {}
    with Sides(context.start) as sides:
        for name, build in SIDES.items():
            sides.add(name, build, options, context.settings.environment)
        for count in sizes.candidates:
            if count > context.prepared["documents"]:
                continue
            context.say(f"candidates: {count}, {dtype}")
            calls: dict[str, Callable[[], Timed]] = {
                name: partial(side, candidates=count) for name, side in sides.started.items()
            }
            tokens = {
                name: sides.started[name](candidates=count, count_tokens=True).result
                for name in (OURS, PROMPTLESS, CROSS_ENCODER)
                if name in sides.started
            }
            for name in (OURS, PROMPTLESS):
                sides.started[name](candidates=count)  # chooses kernels
            rounds = alternate(calls, sizes.rounds)
            by_count[str(count)] = {
                name: _row(name, rounds, sizes.chain_queries, tokens) for name in calls
            }
        about = sides.about()
    return {
        "dtype": dtype,
        "queries": sizes.chain_queries * sizes.rounds,
        "sides": about,
        "by_candidates": by_count,
        "missing": sides.missing,
    }


def _row(
    name: str, rounds: Sequence[Round], queries: int, tokens: Mapping[str, float]
) -> dict[str, Any]:
    """Milliseconds and tokens of a query, and how many times as fast ours is."""
    # The chains of the others read the same pairs as the cross-encoder alone.
    read = tokens[name if name in tokens else CROSS_ENCODER]
    row: dict[str, Any] = {
        "ms": spread([1000 * each[name].wall / queries for each in rounds]),
        "process_ms": spread([1000 * each[name].process / queries for each in rounds]),
        "tokens": read,
    }
    if name not in (OURS, PROMPTLESS):
        row["ours_as_fast"] = ratio(rounds, OURS, name)
        row["token_ratio"] = read / tokens[OURS]
        row["time_over_token_ratio"] = row["ours_as_fast"]["median"] / row["token_ratio"]
    return row


def ours(
    model: str, data: str | None, documents: int, folder: str, dtype: str, queries: int
) -> tuple[dict[str, Any], Answer]:
    """A side that searches with this library, and reranks with the model's prompt."""
    from e2rank_rag.rerankers import ListwiseReranker

    return _ours(ListwiseReranker, model, data, documents, folder, dtype, queries)


def promptless(
    model: str, data: str | None, documents: int, folder: str, dtype: str, queries: int
) -> tuple[dict[str, Any], Answer]:
    """A side that searches with this library, and reranks without a prompt."""
    from e2rank_rag.rerankers import EvidenceReranker

    return _ours(EvidenceReranker, model, data, documents, folder, dtype, queries)


def _ours(
    kind: Callable[[Any], BaseReranker],
    model: str,
    data: str | None,
    documents: int,
    folder: str,
    dtype: str,
    queries: int,
) -> tuple[dict[str, Any], Answer]:
    from e2rank_rag.pipeline import SearchPipeline

    encoder = open_encoder(model, dtype)
    store = open_index(encoder, *stored(folder, data, documents), words=False)
    reranker = kind(encoder)
    pipeline = SearchPipeline(encoder, store, reranker)

    def ask(query: str, candidates: int) -> None:
        pipeline.search(query, top_k=min(TOP_K, candidates), retrieve_k=candidates)

    def tokens(query: str, candidates: int) -> int:
        hits = SearchPipeline(encoder, store).search(query, top_k=candidates)
        prompts = reranker.rerank_batch([query], [hits]).report.prompts
        return sum(prompt.tokens for prompt in prompts) + len(
            encoder.tokenizer.queries([query])[0].ids
        )

    return about_encoder(encoder), answering(data, queries, ask, tokens)


def answering(
    data: str | None,
    queries: int,
    ask: Callable[[str, int], object],
    tokens: Callable[[str, int], int] | None = None,
) -> Answer:
    """How every side answers: it asks the next `queries` queries.

    ask: one query with a number of candidates. tokens: how many tokens the models read for it,
        where the side can say it.
    """

    fresh = queries_of(data)

    def answer(candidates: int, count_tokens: bool = False) -> float | None:
        if count_tokens and tokens is not None:
            some = islice(queries_of(data), queries)
            return fmean(tokens(query, candidates) for query in some)
        for query in islice(fresh, queries):
            ask(query, candidates)
        return None

    return answer


def tables(result: Mapping[str, Any]) -> list[Table]:
    """One line per side and number of candidates."""
    found = []
    for part in result["by_dtype"]:
        rows = [
            [
                name,
                count,
                f"{row['ms']['median']:.0f}",
                f"{row['process_ms']['median']:.0f}",
                cells(row["tokens"], 0),
                *(span(row["ours_as_fast"]) if "ours_as_fast" in row else ["", "", ""]),
                cells(row.get("token_ratio"), 1),
                cells(row.get("time_over_token_ratio")),
            ]
            for count, sides in part["by_candidates"].items()
            for name, row in sides.items()
        ]
        threads = part["sides"][OURS]["threads"]
        title = (
            f"Query text to {result['top_k']} documents; {part['dtype']}, threads: {threads}, "
            f"documents of at most {result['max_length']} tokens"
        )
        head = (
            "side|candidates|ms|process ms|tokens|ours as fast: worst|median|best|token ratio"
            "|time ratio / token ratio"
        )
        found.append(Table(title, head.split("|"), rows, part["missing"]))
    return found
