"""Queries of a dataset with four rankings of its documents, for tables over many datasets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from e2rank_rag.documents import is_query
from e2rank_rag.evaluation.metrics import evaluate_by_query
from e2rank_rag.evaluation.report import Experiment
from e2rank_rag.evidence import CandidateWords, Scores, joined, standardised
from e2rank_rag.rerankers.ranking import unit
from e2rank_rag.training.mining import nearest
from e2rank_rag.training.vectors import TextVectors
from e2rank_rag.training.word_index import WordIndex, fused
from e2rank_rag.types import Document, Embeddings, Hit, TextEncoder
from e2rank_rag.words import Bm25

NDCG, RECALL = "nDCG@10", "R@100"
CANDIDATES = 100
MSMARCO = "msmarco_dl19_dl20_pool"

UNSEEN_COLLECTIONS = (
    "cranfield",
    "medlars",
    "cisi",
    "nfcorpus",
    "dl19+dl20",
    "liveqa_med",
    "squad2_dev",
)
UNSEEN_SPLITS = ("scifact", "bioasq_snippets")
OTHERS = ("medquad", "squadshifts_new_wiki", "wikiqa", "multihop_small", "nq_qed_dev")
UNSEEN_DEV = ("nfcorpus", "wikiqa")
DEV = ("nfcorpus", "wikiqa", "bioasq_snippets", "squadshifts_new_wiki", "medquad")

DENSE, WORDS, RRF, RRF_60, DBSF = "dense", "BM25", "RRF", "RRF, k = 60", "DBSF"
"""Rankings: by cosine; by words; both by reciprocal ranks, as Qdrant fuses them by default, and
with the constant of Cormack et al. (2009); both by their scores, as Qdrant's other fusion does."""
ZSUM = "z-sum"
"""The sum of both scores, standardised over the union of the first two, the words' times 0.5."""
FIRST_STAGES = (DENSE, WORDS, RRF, RRF_60, DBSF, ZSUM)
WORDS_WEIGHT = 0.5
RRF_K = {RRF: 2, RRF_60: 60}

ROCCHIO = [(count, beta) for count in (1, 2, 3, 5, 10) for beta in (0.1, 0.2, 0.4, 0.6, 0.8)]

Rows = NDArray[np.int64]
Values = dict[str, float]
"""query id -> value of one measure x 100."""


@dataclass(frozen=True)
class Task:
    """Queries, documents with their vectors, and for each query the rows of ranked documents.

    rankings: FIRST_STAGES, with at most 100 rows per query, but for ZSUM over the whole union.
    sums: the scores of ZSUM.
    own: the row of the document that is the query itself, which no ranking has; -1: none.
    given: whether the candidates were given, so that nothing is searched.
    """

    name: str
    ids: list[str]
    queries: list[str]
    asked: Embeddings
    documents: list[Document]
    vectors: Embeddings
    rankings: Mapping[str, list[Rows]]
    sums: list[Scores]
    own: list[int]
    qrels: Mapping[str, Mapping[str, int]]
    given: bool = False

    @property
    def candidates(self) -> list[list[Hit]]:
        """The nearest documents of every query, as rerankers take them."""
        return self.hits(self.rankings[DENSE])

    def hits(self, ranked: Sequence[Rows], start: int = 0) -> list[list[Hit]]:
        """Hits of these rows, scored by cosine; `start`: the query of the first ranking."""
        lists = []
        for rows, query in zip(ranked, self.asked[start:], strict=False):
            scores = self.vectors[rows] @ query
            found = zip(rows, scores.tolist(), strict=True)
            lists.append([Hit(self.documents[row], s, self.vectors[row]) for row, s in found])
        return lists

    def values(self, ranked: Sequence[Rows], measure: str = NDCG) -> Values:
        """Of one ranking of rows per query."""
        found = [[self.documents[row].id for row in rows[:CANDIDATES]] for rows in ranked]
        return self._values(found, measure)

    def values_of(self, rankings: Sequence[Sequence[Hit]], measure: str = NDCG) -> Values:
        """Of one ranking of hits per query."""
        return self._values([[hit.document.id for hit in hits] for hits in rankings], measure)

    def _values(self, found: Sequence[Sequence[str]], measure: str) -> Values:
        run = {
            query: {id: -float(place) for place, id in enumerate(ids)}
            for query, ids in zip(self.ids, found, strict=True)
        }
        values = evaluate_by_query(run, self.qrels, [measure])
        return {id: 100 * each[measure] for id, each in values.items()}

    def searched(self, vectors: Embeddings, start: int = 0) -> list[Rows]:
        """The 100 nearest documents to these vectors; `start`: the query of the first one."""
        depth = min(CANDIDATES + 1, len(self.documents))
        return [
            np.array([row for row in rows if row != own], dtype=np.int64)[:CANDIDATES]
            for rows, own in zip(
                nearest(vectors, self.vectors, depth), self.own[start:], strict=False
            )
        ]

    def by_vectors(
        self, vectors: Embeddings, candidates: str, added: Sequence[Scores] | None = None
    ) -> list[Rows]:
        """One of the rankings, ordered by the cosines with one vector per query.

        added: what words add to them, for each query and candidate; see `evidence.joined`.
        """
        ordered = []
        for place, (rows, vector) in enumerate(
            zip(self.rankings[candidates], vectors, strict=True)
        ):
            scores = self.vectors[rows] @ vector
            if added is not None:
                scores = joined(scores, added[place])
            ordered.append(rows[np.argsort(-scores, kind="stable")])
        return ordered

    def words(self, place: int, candidates: str, bm25: Bm25) -> CandidateWords:
        """The words of one query and its candidates, in the ranking's order."""
        texts = [self.documents[row].text for row in self.rankings[candidates][place]]
        return CandidateWords.of(self.queries[place], texts, bm25)

    def first(self, count: int) -> Task:
        """The same with so many queries at most."""
        ids = self.ids[:count]
        return replace(
            self,
            ids=ids,
            queries=self.queries[:count],
            asked=self.asked[:count],
            rankings={name: rows[:count] for name, rows in self.rankings.items()},
            sums=self.sums[:count],
            own=self.own[:count],
            qrels={id: self.qrels[id] for id in ids},
        )

    def rocchio(self, count: int, beta: float, candidates: str) -> Embeddings:
        """Query vectors moved towards the mean of the first documents."""
        means = [self.vectors[rows[:count]].mean(axis=0) for rows in self.rankings[candidates]]
        return unit(self.asked + beta * np.stack(means))


def mean(values: Mapping[str, float]) -> float:
    """The mean over the queries."""
    return fmean(values.values())


def tuned_rocchio(dev: Sequence[Task], candidates: str = DENSE) -> tuple[int, float]:
    """Documents and beta with the best mean over the dev sets."""

    def dev_mean(setting: tuple[int, float]) -> float:
        vectors = [task.rocchio(*setting, candidates) for task in dev]
        pairs = zip(dev, vectors, strict=True)
        return fmean(mean(task.values(task.by_vectors(v, candidates))) for task, v in pairs)

    return max(ROCCHIO, key=dev_mean)


@dataclass(frozen=True)
class Reader:
    """Reads tasks from a folder of BEIR folders.

    known: keeps the vectors of documents. limit: queries of a dataset at most; None: all.
    """

    data: Path
    base: TextEncoder
    known: TextVectors
    limit: int | None = None

    @classmethod
    def of(
        cls, data: Path, base: TextEncoder, cache: Path | None, limit: int | None = None
    ) -> Reader:
        """cache: a folder that keeps the vectors of documents in one file per fingerprint."""
        kept = None if cache is None else cache / f"{base.fingerprint}.npz"
        return cls(data, base, TextVectors(base.dim, cache=kept), limit)

    def read(self, name: str, split: str) -> Task:
        """The queries of a split of one dataset."""
        if name == "dl19+dl20":
            parts = [self._task(year, self._msmarco(year)) for year in ("dl19", "dl20")]
        else:
            # Nothing is trained on wikiqa, and its dev split is small.
            splits = ("dev", "train") if (name, split) == ("wikiqa", "dev") else (split,)
            parts = [self._task(name, Experiment.read(self.data / name, each)) for each in splits]
        return parts[0] if len(parts) == 1 else _merged(name, parts)

    def _msmarco(self, year: str) -> Experiment:
        folder = self.data / MSMARCO
        run, qrels = folder / "runs" / f"{year}.bm25.trec", folder / "qrels_full" / f"{year}.tsv"
        return Experiment.read(folder, year, run=run, qrels=qrels)

    def _task(self, name: str, experiment: Experiment) -> Task:
        documents = [each for each in experiment.documents() if each.text.strip()]
        texts = [document.text for document in documents]
        self.known.encode(texts, self.base.encode_documents)
        ids = list(experiment.queries)[: self.limit]
        queries = [experiment.queries[id] for id in ids]
        rows = {document.id: row for row, document in enumerate(documents)}
        given = None
        if experiment.candidates is not None:
            given = [np.array([rows[each] for each in experiment.candidates[id]]) for id in ids]
        qrels = {id: experiment.qrels[id] for id in ids}
        own = [
            rows.get(id, -1)
            if id not in qrels[id] and id in rows and is_query(documents[rows[id]], query)
            else -1
            for id, query in zip(ids, queries, strict=True)
        ]
        task = Task(
            name,
            ids,
            queries,
            self.base.encode_queries(queries),
            # Without their metadata, of which some datasets have much.
            [Document(each.id, each.text) for each in documents],
            self.known.of(texts),
            {},
            [],
            own,
            qrels,
            given is not None,
        )
        return _ranked(task, given)


def _merged(name: str, parts: Sequence[Task]) -> Task:
    """All queries over all documents; ranks stay, so documents of two parts may be there twice."""
    starts = np.cumsum([0, *(len(part.documents) for part in parts)])
    pairs = list(zip(parts, starts, strict=False))
    return Task(
        name,
        [id for part in parts for id in part.ids],
        [query for part in parts for query in part.queries],
        np.concatenate([part.asked for part in parts]),
        [document for part in parts for document in part.documents],
        np.concatenate([part.vectors for part in parts]),
        {
            of: [rows + start for part, start in pairs for rows in part.rankings[of]]
            for of in FIRST_STAGES
        },
        [scores for part in parts for scores in part.sums],
        [own if own < 0 else own + int(start) for part, start in pairs for own in part.own],
        {id: grades for part in parts for id, grades in part.qrels.items()},
        any(part.given for part in parts),
    )


def _ranked(task: Task, given: list[Rows] | None) -> Task:
    """The task with its rankings; given: candidates of every query in the order of words."""
    words = lexical_scores([each.text for each in task.documents], task.queries)
    found: dict[str, list[Rows]] = {name: [] for name in FIRST_STAGES}
    sums = []
    nearby = task.searched(task.asked) if given is None else given
    for dense, own, query, lexical in zip(nearby, task.own, task.asked, words, strict=True):
        if given is None:
            best = np.argsort(-lexical, kind="stable")[: CANDIDATES + 1]
            by_words = best[(lexical[best] > 0) & (best != own)][:CANDIDATES]
        else:
            by_words = dense
            dense = by_words[np.argsort(-(task.vectors[by_words] @ query), kind="stable")]
        union = np.array(list(dict.fromkeys([*dense, *by_words])))
        scores = standardised(task.vectors[union] @ query)
        scores += WORDS_WEIGHT * standardised(lexical[union])
        order = np.argsort(-scores, kind="stable")
        found[DENSE].append(dense)
        found[WORDS].append(by_words)
        for name, k in RRF_K.items():
            found[name].append(reciprocal_ranks(dense, by_words, k))
        pairs = [(dense, task.vectors[dense] @ query), (by_words, lexical[by_words])]
        found[DBSF].append(distributions(pairs))
        found[ZSUM].append(union[order])
        sums.append(scores[order])
    return replace(task, rankings=found, sums=sums)


def lexical_scores(texts: Sequence[str], queries: Sequence[str]) -> Iterator[NDArray[np.float32]]:
    """BM25 scores of all texts for each query, as Qdrant makes them of the store's vectors."""
    index = WordIndex.of(Bm25(), texts)
    for query in queries:
        yield index.scores([query]).toarray()[0]


def reciprocal_ranks(dense: Rows, words: Rows, k: int = RRF_K[RRF]) -> Rows:
    """The first 100 rows of two rankings, fused as by Qdrant."""
    return np.array(fused(dense.tolist(), words.tolist(), CANDIDATES, k=k), dtype=np.int64)


def distributions(scored: Sequence[tuple[Rows, Scores]]) -> Rows:
    """The first 100 rows of scored rankings fused as by Qdrant: scores from mean - 3 deviations (0)
    to mean + 3 deviations (1), added."""
    sums: dict[int, float] = {}
    for rows, scores in scored:
        spread = 3 * float(np.std(scores, ddof=1)) if len(scores) > 1 else 0.0
        shares = (
            0.5 + (scores - scores.mean()) / (2 * spread) if spread else np.full(len(rows), 0.5)
        )
        for row, share in zip(rows.tolist(), shares.tolist(), strict=True):
            sums[row] = sums.get(row, 0.0) + share
    best = sorted(sums, key=lambda row: -sums[row])[:CANDIDATES]
    return np.array(best, dtype=np.int64)
