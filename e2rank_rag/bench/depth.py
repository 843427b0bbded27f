"""What the number of documents in the listwise prompt costs, and how many fit."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from itertools import islice
from statistics import fmean, median
from typing import Any

from e2rank_rag.bench.context import Context
from e2rank_rag.bench.flops import forward_flops
from e2rank_rag.bench.pairs import alternate, percentiles, timed
from e2rank_rag.bench.searching import about_encoder, open_encoder, open_index, queries_of, stored
from e2rank_rag.bench.sides import Answer, Sides
from e2rank_rag.bench.tables import Table, cells

DTYPE = "auto"


def measure(context: Context) -> dict[str, Any]:
    """By number of documents: milliseconds of a reranking of 100, and what the prompt held."""
    sizes = context.settings.sizes
    options = {**context.prepared, "dtype": DTYPE, "queries": sizes.queries}
    context.say("depth")
    with Sides(context.start) as sides:
        side = sides.add(
            "depth", f"{__name__}:reranking_side", options, context.settings.environment
        )
        assert side is not None
        calls = {str(depth): partial(side, depth=depth) for depth in sizes.depths}
        for call in calls.values():
            call()
        rounds = alternate(calls, sizes.rounds)
        about = side.about
    rows = {}
    for depth in calls:
        found = [each[depth].result for each in rounds]
        ms = [value for each in found for value in each["ms"]]
        prompt = [value for each in found for value in each["prompt_ms"]]
        rate = found[0]["flops"] / (median(prompt) / 1e3) / 1e9
        rows[depth] = {
            "ms": percentiles(ms),
            "prompt_ms": percentiles(prompt),
            "documents": found[0]["documents"],
            "tokens": found[0]["tokens"],
            "gflops": rate,
            "share_of_peak": context.share(rate, about["dtype"], about["threads"]),
        }
    return {**about, "by_depth": rows}


def reranking_side(
    model: str, data: str | None, documents: int, folder: str, dtype: str, queries: int
) -> tuple[dict[str, Any], Answer]:
    """A side that reranks the candidates of some queries with a prompt of any depth.

    prompt_ms and flops are those of a prompt of the first candidates alone, without the reranking.
    """
    from e2rank_rag.bench.query import CANDIDATES
    from e2rank_rag.models.config import positions
    from e2rank_rag.pipeline import SearchPipeline
    from e2rank_rag.rerankers import ListwiseReranker
    from e2rank_rag.types import PromptUsage

    encoder = open_encoder(model, dtype)
    store = open_index(encoder, *stored(folder, data, documents), words=False)
    texts = list(islice(queries_of(data), queries))
    found = SearchPipeline(encoder, store).search_batch(texts, top_k=CANDIDATES)
    asked = encoder.encode_queries(texts)
    config = encoder.loaded.transformer.config

    def answer(depth: int) -> dict[str, Any]:
        reranker = ListwiseReranker(encoder, prompt_depth=depth, stored_vectors="trust")
        ms, prompt_ms, tokens = [], [], []
        prompts: list[PromptUsage] = []
        for query, hits, vector in zip(texts, found, asked, strict=True):
            rerank = partial(reranker.rerank_batch, [query], [hits], query_vectors=vector[None])
            whole = timed(rerank)
            shown = [[hit.document.text for hit in hits]]
            prompt = partial(encoder.encode_listwise, [query], shown, depth=depth, query_weight=0.0)
            alone = timed(prompt)
            ms.append(1000 * whole.wall)
            prompt_ms.append(1000 * alone.wall)
            prompts += whole.result.report.prompts
            tokens.append(alone.result.usage[0].tokens)
        return {
            "ms": ms,
            "prompt_ms": prompt_ms,
            "documents": fmean(prompt.documents for prompt in prompts),
            "tokens": fmean(prompt.tokens for prompt in prompts),
            "flops": forward_flops(config, tokens) / len(tokens),
        }

    about = {
        **about_encoder(encoder),
        "candidates": CANDIDATES,
        "positions": positions(config),
        "prompt_tokens": encoder.recipe.listwise.max_tokens,
    }
    return about, answer


def tables(result: Mapping[str, Any]) -> list[Table]:
    """One line per depth."""
    rows = [
        [
            depth,
            f"{row['documents']:.1f}",
            f"{row['tokens']:.0f}",
            f"{row['ms']['p50']:.1f} / {row['ms']['p99']:.1f}",
            f"{row['prompt_ms']['p50']:.1f}",
            f"{row['gflops']:.0f}",
            cells(row["share_of_peak"]),
        ]
        for depth, row in result["by_depth"].items()
    ]
    title = (
        f"Documents in the prompt; {result['dtype']}, threads: {result['threads']}; "
        f"{result['candidates']} candidates; a prompt has at most {result['prompt_tokens']} tokens "
        f"(the model places {result['positions']})"
    )
    head = "depth|documents that fit|tokens|rerank ms p50 / p99|prompt ms p50|GFLOP/s|of peak"
    return [Table(title, head.split("|"), rows)]
