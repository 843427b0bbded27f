"""Dev sets: queries and documents to measure a model on while it trains.

With several processes, each measures its share of the queries or texts, and all get the figures of
the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from e2rank_rag.distributed import gather_objects, processes, share
from e2rank_rag.documents import is_query
from e2rank_rag.evaluation.metrics import evaluate
from e2rank_rag.evaluation.runs import Qrels, run_from_rankings
from e2rank_rag.rerankers import BaseReranker, score_by_vector
from e2rank_rag.training.mining import nearest
from e2rank_rag.training.vectors import TextVectors
from e2rank_rag.types import Document, Embeddings, Hit, TextEncoder

NDCG = "nDCG@10"

RETRIEVED = 100
"""How many documents are retrieved for each query."""


@dataclass(frozen=True)
class DevSet:
    """Queries with their candidates, which a model ranks."""

    name: str
    queries: Mapping[str, str]
    candidates: Mapping[str, Sequence[Document]]
    qrels: Qrels

    def measure(
        self,
        encoder: TextEncoder,
        known: TextVectors | None,
        reranker: BaseReranker | None = None,
    ) -> dict[str, float]:
        """nDCG@10 of the candidates by plain cosine (`retrieve`) and reranked (`rerank`).

        known: the documents' vectors if they are frozen; None: they are encoded now.
        reranker: None leaves `rerank` out.
        """
        ids = share(list(self.queries))
        rankings = self._rankings(ids, encoder, known, reranker) if ids else {}
        names = ["retrieve"] if reranker is None else ["retrieve", "rerank"]
        return {
            name: evaluate(whole_run(rankings.get(name, {}), self.queries), self.qrels, [NDCG])[
                NDCG
            ]
            for name in names
        }

    def measure_reranked(
        self, reranker: BaseReranker, measures: Mapping[str, str]
    ) -> dict[str, float]:
        """Figures of the candidates in the reranker's order; measures: by a figure's name."""
        ids = share(list(self.queries))
        ranked = reranker.rerank_batch(
            [self.queries[id] for id in ids],
            [[Hit(document, 0.0) for document in self.candidates[id]] for id in ids],
        )
        run = whole_run(dict(zip(ids, ranked, strict=True)), self.queries)
        figures = evaluate(run, self.qrels, list(measures.values()))
        return {name: figures[measure] for name, measure in measures.items()}

    def _rankings(
        self,
        ids: Sequence[str],
        encoder: TextEncoder,
        known: TextVectors | None,
        reranker: BaseReranker | None,
    ) -> dict[str, Mapping[str, Sequence[Hit]]]:
        vectors = known
        if vectors is None:
            vectors = TextVectors(encoder.dim)
            texts = [document.text for id in ids for document in self.candidates[id]]
            vectors.encode(texts, encoder.encode_documents)
        asked = encoder.encode_queries([self.queries[id] for id in ids])
        retrieved = {
            id: score_by_vector(
                [
                    Hit(document, 0.0, vectors.values[vectors.rows[document.text]])
                    for document in self.candidates[id]
                ],
                vector,
            )
            for id, vector in zip(ids, asked, strict=True)
        }
        if reranker is None:
            return {"retrieve": retrieved}
        reranked = reranker.rerank_batch(
            [self.queries[id] for id in ids],
            [retrieved[id] for id in ids],
            query_vectors=asked,
        )
        return {"retrieve": retrieved, "rerank": dict(zip(ids, reranked, strict=True))}


@dataclass(frozen=True)
class RetrievalSet:
    """Queries, and the documents among which a model retrieves the relevant ones.

    documents: each text once, all relevant ones among them, so that a perfect model reaches 1.
    copies: by query id, copies of the query, see `types.RankingExample`.
    """

    name: str
    queries: Mapping[str, str]
    documents: Sequence[Document]
    qrels: Qrels
    copies: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        name: str,
        queries: Mapping[str, str],
        relevant: Mapping[str, Mapping[str, float]],
        others: Sequence[str],
        copies: Mapping[str, Sequence[str]] | None = None,
    ) -> RetrievalSet:
        """relevant: by query id, texts with their grades, above 0. others: the other texts."""
        judged = [text for grades in relevant.values() for text in grades]
        ids = {text: str(row) for row, text in enumerate(dict.fromkeys([*judged, *others]))}
        return cls(
            name=name,
            queries=queries,
            documents=[Document(id, text) for text, id in ids.items()],
            qrels={
                query: {ids[text]: max(int(grade), 1) for text, grade in grades.items()}
                for query, grades in relevant.items()
            },
            copies=copies or {},
        )

    def measure(self, encoder: TextEncoder) -> dict[str, float]:
        """nDCG@10 of the encoder's retrieval from all documents (`retrieve`).

        Copies of the query are left out, unless they are judged relevant.
        """
        vectors = _encoded([d.text for d in self.documents], encoder.encode_documents)
        asked = _encoded(list(self.queries.values()), encoder.encode_queries)
        rankings = {}
        for (id, query), rows in zip(
            self.queries.items(), nearest(asked, vectors, RETRIEVED), strict=True
        ):
            found = [self.documents[row] for row in rows]
            rankings[id] = [
                Hit(document, 0.0)
                for document in found
                if document.id in self.qrels[id]
                or not (is_query(document, query) or document.text in self.copies.get(id, ()))
            ]
        return {"retrieve": evaluate(run_from_rankings(rankings), self.qrels, [NDCG])[NDCG]}


def whole_run(
    rankings: Mapping[str, Sequence[Hit]], queries: Mapping[str, str]
) -> dict[str, dict[str, float]]:
    """The TREC run of all queries, in their order, from the rankings of each process's share."""
    made: dict[str, dict[str, float]] = {}
    for each in gather_objects(run_from_rankings(rankings)):
        made.update(each)
    return {id: made[id] for id in queries}


def _encoded(texts: Sequence[str], encode: Callable[[Sequence[str]], Embeddings]) -> Embeddings:
    """Vectors of all texts, float32 [n, dim]; each process encodes its share."""
    mine = share(texts)
    parts = gather_objects(encode(mine) if mine else None)
    vectors: Embeddings | None = None
    for number, part in enumerate(parts):
        if part is None:
            continue
        if vectors is None:
            vectors = np.empty((len(texts), part.shape[1]), dtype=np.float32)
        vectors[number :: processes()] = part
    if vectors is None:
        raise ValueError("there are no texts to encode")
    return vectors
