"""What each part of a reranking is worth beside hybrid search: one table over all datasets.

    python benchmarks/hybrid_table.py DATA e2rank-minilm --cache FOLDER [--query-adapter FOLDER]

DATA holds BEIR folders. First stages: `dense`, the base's 100 nearest documents; `BM25`; `RRF` and
`DBSF`, both fused as the store's hybrid search does; `z-sum`, z(cosine) + 0.5 z(BM25) over the
union of both; `z-sum + expansion`, the same with the words of its best documents. For MS MARCO the
candidates are the BM25 runs of TREC DL 2019 and 2020, with NIST's whole qrels. All other rows
rerank the 100 candidates of RRF, `listwise over dense` those of dense: `rocchio`; `feedback`, the
model's own without a prompt; `evidence`, feedback and words without a prompt, at their defaults;
`untrained prompt`, the model without its listwise adapter; `query adapter`, trained on the same
data without documents in its prompts; `listwise`, the model as its folder says; `expand`, the same
after a second search. The prompts' scores have the words that the model's recipe says. The numbers
of every row but `evidence` and `listwise` are chosen here, on the dev splits pooled.

Tests: paired randomisation with Holm's correction over the datasets that training has not seen and
the test splits of two that it has, against RRF, and against the better of dense and z-sum on each
dataset. Then what the documents in the prompt do, for 100 queries of each unseen dataset: shuffled,
none, and those of another query.

`--queries` takes the first queries of each dataset only; of each dev split 200 are taken. Every
prompt is read once: rows that show a model the same documents share its vector. `--keep FOLDER`
keeps what is measured: a second call with it goes on where the first one ended. `--dev-only` prints
what the weights of query and feedback bring on dev instead.

Writes benchmarks/results/hybrid_table.json (`--dev-only`: hybrid_dev.json), and without `--output`
and if all tested datasets are measured the tables in docs/results.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, cast

import numpy as np
from pages import changes_table, datasets_table, write_into
from tasks import (
    DENSE,
    DEV,
    NDCG,
    OTHERS,
    RECALL,
    RRF,
    UNSEEN_COLLECTIONS,
    UNSEEN_DEV,
    UNSEEN_SPLITS,
    ZSUM,
    Reader,
    Task,
    Values,
    mean,
    tuned_rocchio,
)
from weights import (
    Listwise,
    ReadOnce,
    best,
    documents_of_the_prompt,
    grid,
    reranked,
    twice,
    weighted,
)

from e2rank_rag.bench.machine import this_machine
from e2rank_rag.evaluation.differences import differences
from e2rank_rag.evidence import Evidence, Scores, standardised
from e2rank_rag.models.encoder import Encoder
from e2rank_rag.rerankers import BaseReranker, EvidenceReranker, ListwiseReranker
from e2rank_rag.types import TextEncoder

RESULTS = Path(__file__).parent / "results" / "hybrid_table.json"
DEV_RESULTS = RESULTS.with_name("hybrid_dev.json")
PAGE = Path(__file__).parents[1] / "docs" / "results.md"
GROUPS = {
    "datasets not trained on": UNSEEN_COLLECTIONS,
    "test splits, trained on `train`": UNSEEN_SPLITS,
    "the other five": OTHERS,
}
TESTED = UNSEEN_COLLECTIONS + UNSEEN_SPLITS
"""Holm's correction is over these."""

DEFAULT = "listwise over RRF"
AGAINST_RRF, AGAINST_BETTER = "against RRF", "against the better of dense and z-sum"

DEV_QUERIES = 200
EXPANSION_WEIGHTS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)

ByMeasure = dict[str, Values]
Measure = Callable[[Task], dict[str, ByMeasure]]
"""The values of one or two rows, by row and measure."""
Record = dict[str, Any]


def expansions(task: Task) -> list[Scores]:
    """For each query what the best candidates' words say of ZSUM's documents, standardised."""
    settings = Evidence()
    found = []
    for place, scores in enumerate(task.sums):
        words = task.words(place, ZSUM, settings.bm25)
        terms, documents = settings.expansion_terms, settings.expansion_documents
        found.append(standardised(words.expansion(scores, documents=documents, terms=terms)))
    return found


def with_expansion(task: Task, added: Sequence[Scores], weight: float) -> Values:
    """ZSUM with so much of the expansion added."""
    lists = zip(task.rankings[ZSUM], task.sums, added, strict=True)
    return task.values([rows[np.argsort(-(s + weight * a), kind="stable")] for rows, s, a in lists])


def tuned_expansion(dev: Sequence[Task]) -> float:
    """The weight with the best mean over the dev sets."""
    lists = [(task, expansions(task)) for task in dev]

    def dev_mean(weight: float) -> float:
        return fmean(mean(with_expansion(task, added, weight)) for task, added in lists)

    return max(EXPANSION_WEIGHTS, key=dev_mean)


@dataclass(frozen=True)
class Models:
    """The model, the same without its adapter, and the adapter that reads no documents."""

    model: ReadOnce
    untrained: ReadOnce
    query_adapter: ReadOnce | None

    @classmethod
    def open(cls, model: str, query_adapter: Path | None) -> Models:
        encoder = Encoder.from_pretrained(model)
        without = None
        if query_adapter is not None:
            without = ReadOnce(Encoder.from_pretrained(query_adapter))
        return cls(ReadOnce(encoder), ReadOnce(encoder.without_adapter()), without)

    @property
    def prompts(self) -> dict[str, int]:
        """How many prompts each of them has read."""
        found = {"model": self.model.prompts, "untrained": self.untrained.prompts}
        if self.query_adapter is not None:
            found["query adapter"] = self.query_adapter.prompts
        return found


def tuned(reader: Reader, models: Models) -> Record:
    """What is chosen on the dev splits, by row; pairs are weights of query and feedback."""
    dev = [reader.read(name, "dev") for name in DEV]
    evidence = models.model.evidence
    lists = [Listwise.of(each, models.untrained, evidence=evidence) for each in dev]
    alone = [replace(each, vectors=each.task.asked, added=None) for each in lists]
    chosen: Record = {
        "z-sum + expansion": tuned_expansion(dev),
        "rocchio": tuned_rocchio(dev, RRF),
        "feedback": best(grid(alone, [1.0])),
        "untrained prompt": best(grid(lists)),
    }
    if models.query_adapter is not None:
        of = partial(Listwise.of, encoder=models.query_adapter, depth=0, evidence=evidence)
        chosen["query adapter"] = best(grid([of(each) for each in dev]))
    return chosen


def rows(chosen: Record, models: Models) -> dict[str, Measure]:
    """How the rows of the table are measured."""

    def over(row: str, reranker: BaseReranker) -> Measure:
        return lambda task: {row: {NDCG: reranked(task, reranker, RRF)}}

    model = cast(TextEncoder, models.model)
    measures: dict[str, Measure] = {
        "first stages": _first_stages,
        "z-sum + expansion": partial(_expansion, weight=chosen["z-sum + expansion"]),
        "rocchio": partial(_rocchio, setting=chosen["rocchio"]),
    }
    rerankers: dict[str, BaseReranker] = {
        "feedback": weighted(models.model, chosen["feedback"], evidence=False),
        "evidence": EvidenceReranker(model, stored_vectors="trust"),
        "untrained prompt": weighted(models.untrained, chosen["untrained prompt"]),
    }
    if models.query_adapter is not None:
        options: Record = {"prompt_depth": 0, "evidence": models.model.evidence or False}
        weights = chosen["query adapter"]
        rerankers["query adapter"] = weighted(models.query_adapter, weights, **options)
    measures |= {row: over(row, reranker) for row, reranker in rerankers.items()}
    for candidates in (DENSE, RRF):
        row = f"listwise over {candidates}"
        measures[row] = partial(_listwise, model=model, row=row, candidates=candidates)
    return measures


def _first_stages(task: Task) -> dict[str, ByMeasure]:
    return {
        name: {measure: task.values(ranked, measure) for measure in (NDCG, RECALL)}
        for name, ranked in task.rankings.items()
    }


def _expansion(task: Task, *, weight: float) -> dict[str, ByMeasure]:
    return {"z-sum + expansion": {NDCG: with_expansion(task, expansions(task), weight)}}


def _rocchio(task: Task, *, setting: tuple[int, float]) -> dict[str, ByMeasure]:
    vectors = task.rocchio(*setting, RRF)
    return {"rocchio": {NDCG: task.values(task.by_vectors(vectors, RRF))}}


def _listwise(task: Task, *, model: TextEncoder, row: str, candidates: str) -> dict[str, ByMeasure]:
    reranker = ListwiseReranker(model, stored_vectors="trust")
    if task.given:
        return {row: {NDCG: reranked(task, reranker, candidates)}}
    once, expanded = twice(task, reranker, candidates)
    return {row: {NDCG: once}, f"{row}, expand": expanded}


def kept(file: Path | None, make: Callable[[], Record]) -> Record:
    """What the file holds; if it is missing, what `make` gives, which is written to it."""
    if file is not None and file.is_file():
        found: Record = json.loads(file.read_text())
        return found
    # As JSON has it, whether it was read or made.
    made: Record = json.loads(json.dumps(make()))
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(made))
    return made


def tests(values: Mapping[str, Mapping[str, Values]]) -> dict[str, dict[str, Record]]:
    """For both baselines, row and tested dataset, the difference; values: by dataset and row."""
    tested = [name for name in TESTED if name in values]
    of_rows = {row: [name for name in tested if row in values[name]] for row in _rows(values)}
    better = {name: max((DENSE, ZSUM), key=lambda of: mean(values[name][of])) for name in tested}
    found: dict[str, dict[str, Record]] = {}
    for title, of in ((AGAINST_RRF, dict.fromkeys(tested, RRF)), (AGAINST_BETTER, better)):
        found[title] = {}
        for row, names in of_rows.items():
            pairs = {name: (values[name][row], values[name][of[name]]) for name in names}
            found[title][row] = {
                name: {"against": of[name], **asdict(each)}
                for name, each in differences(pairs).items()
            }
    return found


def _rows(values: Mapping[str, Mapping[str, Values]]) -> list[str]:
    return list(dict.fromkeys(row for by_row in values.values() for row in by_row))


def markdown(record: Record) -> list[str]:
    """A star: another figure than RRF has. A ring: another than the better of dense and z-sum."""
    lines: list[str] = []
    if record["first"] is not None:
        lines += [f"At most the first {record['first']} queries of each dataset.", ""]
    tests = {"*": record[AGAINST_RRF], "°": record[AGAINST_BETTER]}
    for title, group in GROUPS.items():
        queries = {name: record["queries"][name] for name in group if name in record["queries"]}
        if queries:
            lines += [f"{title}:".capitalize(), ""]
            lines += [*datasets_table(record[NDCG], queries, tests, DEFAULT), ""]
    searched = {name: record["queries"][name] for name in record[RECALL][f"{DEFAULT}, expand"]}
    lines += ["R@100:", "", *datasets_table(record[RECALL], searched, {}, DEFAULT), ""]
    return lines + changes_table(record[NDCG], list(tests.values()), DEFAULT)


def whole(
    reader: Reader, names: Sequence[str], models: Models, arguments: argparse.Namespace
) -> Record:
    """The table's record."""

    def file(name: str) -> Path | None:
        return None if arguments.keep is None else arguments.keep / f"{name}.json"

    dev = replace(reader, limit=DEV_QUERIES)
    chosen = kept(file("tuned"), partial(tuned, dev, models))
    print(f"tuned on dev: {chosen}", flush=True)
    measures = rows(chosen, models)
    values: dict[str, dict[str, ByMeasure]] = {}
    studied: Record = {}
    for name in names:
        task = reader.read(name, "test")
        values[name] = {}
        for of, measure in measures.items():
            values[name] |= kept(file(f"{name}, {of}"), partial(measure, task))
        figures = {row: round(mean(of[NDCG]), 2) for row, of in values[name].items()}
        print(name, figures, flush=True)
        if name in UNSEEN_COLLECTIONS and not arguments.without_documents:
            study = partial(documents_of_the_prompt, task, models.model)
            studied[name] = kept(file(f"{name}, documents"), study)
            print({way: round(each, 2) for way, each in studied[name].items()}, flush=True)
    return {
        "tuned on dev": chosen,
        "queries": {name: len(of[DENSE][NDCG]) for name, of in values.items()},
        **{measure: means(values, measure) for measure in (NDCG, RECALL)},
        **tests({name: {row: of[NDCG] for row, of in by.items()} for name, by in values.items()}),
        "documents of the prompt": studied,
        "prompts read": models.prompts,
    }


def means(
    values: Mapping[str, Mapping[str, ByMeasure]], measure: str
) -> dict[str, dict[str, float]]:
    """The figures of one measure, by row and dataset; values: by dataset, row and measure."""
    found: dict[str, dict[str, float]] = {}
    for name, by_row in values.items():
        for row, by_measure in by_row.items():
            if measure in by_measure:
                found.setdefault(row, {})[name] = mean(by_measure[measure])
    return found


def dev_only(reader: Reader, model: ReadOnce) -> Record:
    """The grid of weights on dev, printed with its means over all dev sets and the unseen ones."""
    tasks = (reader.read(name, "dev") for name in DEV)
    figures = grid([Listwise.of(task, model, evidence=model.evidence) for task in tasks])
    record = {f"query_weight {q}, feedback.weight {f}": by for (q, f), by in figures.items()}
    for setting, by_dataset in record.items():
        shown = " ".join(f"{value:.2f}" for value in by_dataset.values())
        unseen = fmean(by_dataset[name] for name in UNSEEN_DEV)
        print(f"{setting}: {shown} | {fmean(by_dataset.values()):.2f} | {unseen:.2f}")
    return {"dev": record}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("model")
    parser.add_argument("--base", default="minilm")
    parser.add_argument("--query-adapter", type=Path, help="trained with prompt.depths=[0]")
    parser.add_argument("--cache", type=Path, help="keeps the vectors of documents")
    parser.add_argument("--keep", type=Path, help="keeps the figures of one model, query by query")
    parser.add_argument("--queries", type=int, help="of each dataset, the first ones; default: all")
    parser.add_argument("--datasets", help="comma-separated, in place of all")
    parser.add_argument("--without-others", action="store_true", help="only those with a test")
    parser.add_argument("--dev-only", action="store_true", help="the grid of weights on dev")
    parser.add_argument(
        "--without-documents", action="store_true", help="no other documents in the prompt"
    )
    parser.add_argument("--output", type=Path, help="in place of the file in benchmarks/results")
    return parser.parse_args()


def main() -> None:
    arguments = _arguments()
    everything = [name for group in GROUPS.values() for name in group]
    chosen = list(TESTED) if arguments.without_others else everything
    names = arguments.datasets.split(",") if arguments.datasets else chosen
    unknown = sorted(set(names) - set(everything))
    if unknown:
        raise SystemExit(f"no dataset {unknown[0]}; there are {', '.join(everything)}")
    models = Models.open(arguments.model, arguments.query_adapter)
    base = Encoder.from_pretrained(arguments.base)
    reader = Reader.of(arguments.data, base, arguments.cache, arguments.queries)
    record: Record = {
        "model": arguments.model,
        "machine": this_machine(),
        "first": arguments.queries,
    }
    if arguments.dev_only:
        record |= dev_only(reader, models.model)
    else:
        record |= whole(reader, names, models, arguments)
    output = arguments.output or (DEV_RESULTS if arguments.dev_only else RESULTS)
    output.write_text(json.dumps(record, indent=2) + "\n")
    if arguments.dev_only:
        return
    lines = markdown(record)
    print("\n".join(lines))
    if arguments.output is None and set(TESTED) <= set(names):
        write_into(PAGE, lines, Path(__file__).name)


if __name__ == "__main__":
    main()
