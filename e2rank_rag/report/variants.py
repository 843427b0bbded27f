"""The same candidates reranked several ways: in other orders, and with other prompts.

The candidates and their stored vectors are read once for each batch of queries.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import NamedTuple

from e2rank_rag.evaluation.differences import differences
from e2rank_rag.evaluation.metrics import evaluate_by_query
from e2rank_rag.evaluation.runs import run_from_rankings
from e2rank_rag.progress import ProgressReport
from e2rank_rag.report.records import MEASURE, Depth, Held, Order, Prompts, Side
from e2rank_rag.report.shown import Prompt, PromptEncoder, Reordered
from e2rank_rag.rerankers import BaseReranker, CrossEncoderReranker, ListwiseReranker
from e2rank_rag.types import Hit, Store
from e2rank_rag.vectors import with_stored

DEPTHS = (0, 1, 3, 5, 10, 20)
SHUFFLES = 5
BATCH = 16

GIVEN, REVERSED = "given", "reversed"
ORDERS = (GIVEN, *(f"shuffled {n}" for n in range(1, SHUFFLES + 1)), REVERSED)

Rankings = Mapping[str, Sequence[Hit]]


@dataclass(frozen=True)
class Task:
    """What is reranked: the candidates of each query, in the order in which they were retrieved.

    qrels: of these queries alone. reranked: the candidates as the reranker ordered them.
    """

    store: Store
    queries: Mapping[str, str]
    qrels: Mapping[str, Mapping[str, int]]
    candidates: Rankings
    reranked: Rankings

    def batches(self) -> Iterator[dict[str, list[Hit]]]:
        """query id -> candidates with their stored vectors, some queries at a time."""
        ids = [id for id in self.queries if self.candidates.get(id)]
        for start in range(0, len(ids), BATCH):
            lists = {id: self.candidates[id] for id in ids[start : start + BATCH]}
            wanted = {hit.document.id: None for hits in lists.values() for hit in hits}
            stored = self.store.get(list(wanted), with_embeddings=True)
            yield {id: with_stored(hits, stored, self.store.name) for id, hits in lists.items()}

    def values(self, rankings: Rankings) -> dict[str, float]:
        """query id -> nDCG@10, for all queries."""
        by_query = evaluate_by_query(run_from_rankings(rankings), self.qrels, [MEASURE])
        return {id: values[MEASURE] for id, values in by_query.items()}

    def mean(self, rankings: Rankings) -> float:
        """The mean nDCG@10 over all queries."""
        return fmean(self.values(rankings).values())


@dataclass
class _Variant:
    """One way to rerank. spy: its encoder, if it notes prompts."""

    reranker: BaseReranker
    order: str = GIVEN
    spy: PromptEncoder | None = None
    rankings: dict[str, list[Hit]] = field(default_factory=dict)

    def read(self, task: Task, batch: Mapping[str, list[Hit]]) -> None:
        """Rerank some queries; the rankings are kept without vectors."""
        lists = [reordered(hits, self.order, id) for id, hits in batch.items()]
        ranked = self.reranker.rerank_batch([task.queries[id] for id in batch], lists)
        for id, hits in zip(batch, ranked, strict=True):
            self.rankings[id] = [Hit(hit.document, hit.score) for hit in hits]


class Variants(NamedTuple):
    """The result: see `records.DatasetFigures`."""

    order: Order | None
    prompts: Prompts | None


def measure_variants(task: Task, reranker: BaseReranker, *, progress: bool = False) -> Variants:
    """Order robustness of a reranker; of a listwise one also the depth and the prompt's parts."""
    if isinstance(reranker, CrossEncoderReranker):
        return Variants(None, None)
    ways = {f"order {order}": _Variant(reranker, order) for order in ORDERS[1:]}
    depth = own_depth(reranker)
    if depth is not None:
        assert isinstance(reranker, ListwiseReranker)
        depths = sorted({*DEPTHS, depth})
        ways |= {f"depth {each}": _prompted(reranker, each) for each in depths}
        ways |= {f"prompt {order}": _prompted(reranker, depth, order=order) for order in ORDERS[1:]}
    with ProgressReport("rerankings", total=len(task.queries), shown=progress) as shown:
        for batch in task.batches():
            for way in ways.values():
                way.read(task, batch)
            shown.advance(len(batch))
    order = _order(task, "order", ways)
    if depth is None or not _spy(ways[f"depth {depth}"]).prompts:
        return Variants(order, None)
    held = _held(task, ways[f"depth {depth}"])
    inside, outside = sides(task, held)
    sweep = tuple(_depth(task, ways[f"depth {each}"], each, own=each == depth) for each in depths)
    return Variants(order, Prompts(sweep, inside, outside, _order(task, "prompt", ways), held))


def own_depth(reranker: BaseReranker | None) -> int | None:
    """How many documents a reranker's listwise prompt shows; None if it has no such prompt."""
    if not isinstance(reranker, ListwiseReranker):
        return None
    recipe = getattr(reranker.encoder, "recipe", None)
    own = None if recipe is None else recipe.listwise.depth
    return own if reranker.prompt_depth is None else reranker.prompt_depth


def reordered(items: Sequence[Hit], order: str, seed: str) -> list[Hit]:
    """Items in one of `ORDERS`; the same seed gives the same order."""
    if order == GIVEN:
        return list(items)
    if order == REVERSED:
        return list(items)[::-1]
    return random.Random(f"{order} {seed!r}").sample(list(items), len(items))


def _prompted(reranker: ListwiseReranker, depth: int, *, order: str = GIVEN) -> _Variant:
    """The reranker with another depth, or with its documents in another order in the prompt."""
    spy = PromptEncoder(reranker.encoder, depth, reordered=_reordering(order))
    listwise = ListwiseReranker(
        spy,
        query_weight=reranker.query_weight,
        feedback=reranker.feedback,
        evidence=reranker.evidence,
    )
    return _Variant(listwise, spy=spy)


def _reordering(order: str) -> Reordered | None:
    if order == GIVEN:
        return None
    if order == REVERSED:
        return lambda texts: texts[::-1]
    return lambda texts: random.Random(f"{order} {texts!r}").sample(list(texts), len(texts))


def _spy(way: _Variant) -> PromptEncoder:
    assert way.spy is not None
    return way.spy


def _order(task: Task, kind: str, ways: Mapping[str, _Variant]) -> Order:
    means = [task.mean(ways[f"{kind} {order}"].rankings) for order in ORDERS[1:]]
    return Order(task.mean(task.reranked), tuple(means[:-1]), means[-1])


def _depth(task: Task, way: _Variant, depth: int, *, own: bool) -> Depth:
    prompts = [prompt.usage for prompt in _spy(way).prompts]
    documents = sum(usage.documents for usage in prompts)
    values = task.values(way.rankings)
    return Depth(
        depth=depth,
        mean=fmean(values.values()),
        by_query=values,
        documents=documents / len(prompts),
        tokens=fmean(usage.tokens for usage in prompts),
        cut=sum(usage.documents_cut for usage in prompts) / max(documents, 1),
        own=own,
    )


def _held(task: Task, way: _Variant) -> dict[str, Held]:
    """query id -> the ids of the documents in its prompt, which the prompt knows by their texts."""
    prompts = zip(way.rankings, _spy(way).prompts, strict=True)
    return {id: _named(task.candidates[id], prompt) for id, prompt in prompts}


def _named(candidates: Sequence[Hit], prompt: Prompt) -> Held:
    by_text: dict[str, list[str]] = {}
    for hit in candidates:
        by_text.setdefault(hit.document.text, []).append(hit.document.id)
    # Equal texts are one to the model: whichever of them it read.
    ids = tuple(by_text[text].pop(0) for text in prompt.texts)
    return Held(ids, prompt.usage.documents_cut, prompt.usage.tokens)


def sides(task: Task, held: Mapping[str, Held]) -> tuple[Side, Side]:
    """The candidates inside the prompts and those outside, before and after reranking."""
    within = {id: set(prompt.ids) for id, prompt in held.items()}
    return _side(task, within, inside=True), _side(task, within, inside=False)


def _side(task: Task, within: Mapping[str, set[str]], *, inside: bool) -> Side:
    qrels: dict[str, dict[str, int]] = {}
    before: dict[str, list[Hit]] = {}
    after: dict[str, list[Hit]] = {}
    ranks_before: list[int] = []
    ranks_after: list[int] = []
    for id, shown in within.items():
        lists = (task.candidates[id], task.reranked[id])
        kept, moved = (
            {
                hit.document.id: (rank, hit)
                for rank, hit in enumerate(hits, start=1)
                if (hit.document.id in shown) is inside
            }
            for hits in lists
        )
        grades = {doc: grade for doc, grade in task.qrels[id].items() if grade > 0 and doc in kept}
        if not grades:
            continue
        qrels[id] = grades
        before[id] = [hit for _, hit in kept.values()]
        after[id] = [hit for _, hit in moved.values()]
        ranks_before += [kept[doc][0] for doc in grades]
        ranks_after += [moved[doc][0] for doc in grades]
    if not qrels:
        return Side(0, 0.0, 0.0, 0, None, None, None)
    values = [
        {
            id: each[MEASURE]
            for id, each in evaluate_by_query(run_from_rankings(lists), qrels, [MEASURE]).items()
        }
        for lists in (before, after)
    ]
    return Side(
        queries=len(qrels),
        before=fmean(values[0].values()),
        after=fmean(values[1].values()),
        relevant=len(ranks_before),
        rank_before=fmean(ranks_before),
        rank_after=fmean(ranks_after),
        difference=differences({"side": (values[1], values[0])})["side"],
    )
