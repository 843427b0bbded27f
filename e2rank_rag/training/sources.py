"""The sources of a configuration, read: examples to train on, sets to measure on, their vectors."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from e2rank_rag.documents import read_documents
from e2rank_rag.evaluation.collections import Collection
from e2rank_rag.evaluation.metrics import evaluate
from e2rank_rag.evaluation.runs import Qrels, run_from_rankings
from e2rank_rag.models.encoder import Encoder
from e2rank_rag.rerankers import BaseReranker, score_by_vector
from e2rank_rag.training.config import Source
from e2rank_rag.training.examples import read_examples
from e2rank_rag.training.mining import Embedded, collection_documents, mine_lists
from e2rank_rag.training.vectors import TextVectors
from e2rank_rag.types import Document, Hit, RankingExample, TextEncoder

NDCG = "nDCG@10"

T = TypeVar("T")


@dataclass(frozen=True)
class DevSet:
    """Queries with their candidates, measured again and again while a model trains."""

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

        known: vectors of the documents, where they are frozen; None: encoded anew.
        reranker: None leaves the second out.
        """
        vectors = known
        if vectors is None:
            vectors = TextVectors(encoder.dim)
            texts = [d.text for found in self.candidates.values() for d in found]
            vectors.encode(texts, encoder.encode_documents)
        ids = list(self.queries)
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
        rankings = {"retrieve": retrieved}
        if reranker is not None:
            reranked = reranker.rerank_batch(
                [self.queries[id] for id in ids], [retrieved[id] for id in ids]
            )
            rankings["rerank"] = dict(zip(ids, reranked, strict=True))
        return {
            name: evaluate(run_from_rankings(ranking), self.qrels, [NDCG])[NDCG]
            for name, ranking in rankings.items()
        }


def read_training(
    sources: Sequence[Source],
    encoder: Encoder,
    known: TextVectors | None,
    *,
    seed: int,
    mine: bool = True,
) -> list[list[RankingExample]]:
    """The examples of each source; `known` gains the vectors of all their documents.

    mine: False takes the relevant documents of a folder only, for which nothing is encoded.
    """
    read = []
    for source in sources:
        if source.path.is_dir():
            collection = Collection.open(source.path)
            queries = _drawn(collection.queries(source.split), source.limit, seed)
            if mine:
                found = Judged(
                    collection_documents(collection), queries, collection.qrels(source.split)
                )
                lists = _mined(source, found, encoder, known, add_missing=True)
                examples = list(lists.values())
            else:
                examples = _judged(source, collection, queries)
        else:
            examples = _examples(source, seed)
            if source.mine and mine:
                found = Judged.of(examples)
                lists = _mined(source, found, encoder, known, add_missing=True)
                examples = list(lists.values())
            _encode(examples, encoder, known)
        if not examples:
            raise ValueError(f"{source.path} has no query with a relevant document to train on")
        read.append(examples)
    return read


def read_dev(
    sources: Sequence[Source], encoder: Encoder, known: TextVectors | None, *, seed: int
) -> list[DevSet]:
    """One set per source, named by its folder or file."""
    return [_dev_set(source, encoder, known, seed) for source in sources]


def _dev_set(source: Source, encoder: Encoder, known: TextVectors | None, seed: int) -> DevSet:
    if source.path.is_dir():
        collection = Collection.open(source.path)
        queries = _drawn(collection.queries(source.split), source.limit, seed)
        qrels = collection.qrels(source.split)
        judged = Judged(collection_documents(collection), queries, qrels)
        lists = _mined(source, judged, encoder, known, add_missing=False)
        qrels = {id: qrels[id] for id in lists}
    elif source.mine:
        judged = Judged.of(_examples(source, seed))
        lists = _mined(source, judged, encoder, known, add_missing=False)
        qrels = {
            id: {name: int(label) for name, label in judged.labels[id].items()} for id in lists
        }
    else:
        examples = _examples(source, seed)
        _encode(examples, encoder, known)
        lists = {str(number): example for number, example in enumerate(examples)}
        qrels = {
            id: {name: int(label) for name, label in zip(_ids(each), each.labels, strict=True)}
            for id, each in lists.items()
        }
    return DevSet(
        name=source.path.name.partition(".")[0],
        queries={id: example.query for id, example in lists.items()},
        candidates={
            id: [
                Document(name, text)
                for name, text in zip(_ids(example), example.documents, strict=True)
            ]
            for id, example in lists.items()
        },
        qrels=qrels,
    )


@dataclass(frozen=True)
class Judged:
    """Documents to mine, queries by id, and by query and document ids what is judged."""

    documents: Sequence[Document]
    queries: Mapping[str, str]
    labels: Mapping[str, Mapping[str, float]]

    @classmethod
    def of(cls, examples: Sequence[RankingExample]) -> Judged:
        """All documents of these examples together; a query of several has the labels of all."""
        texts = dict.fromkeys(text for example in examples for text in example.documents)
        ids = {text: str(row) for row, text in enumerate(texts)}
        labels: dict[str, dict[str, float]] = {}
        for example in examples:
            judged = zip(example.documents, example.labels, strict=True)
            labels.setdefault(example.query, {}).update(
                (ids[text], label) for text, label in judged
            )
        documents = [Document(id, text) for text, id in ids.items()]
        return cls(documents, {query: query for query in labels}, labels)


def _mined(
    source: Source,
    judged: Judged,
    encoder: Encoder,
    known: TextVectors | None,
    *,
    add_missing: bool,
) -> dict[str, RankingExample]:
    known = TextVectors(encoder.dim) if known is None else known
    texts = [document.text for document in judged.documents]
    known.encode(texts, encoder.encode_documents)
    return mine_lists(
        encoder,
        Embedded(judged.documents, known.of(texts)),
        judged.queries,
        judged.labels,
        depth=source.depth,
        first_negative=source.first_negative,
        add_missing=add_missing,
        task=source.task,
    )


def _judged(
    source: Source, collection: Collection, queries: Mapping[str, str]
) -> list[RankingExample]:
    qrels = collection.qrels(source.split)
    texts = {document.id: document.text for document in collection_documents(collection)}
    examples = []
    for id, query in queries.items():
        ids = [name for name, grade in qrels[id].items() if grade > 0 and name in texts]
        if ids:
            labels = tuple(float(qrels[id][name]) for name in ids)
            documents = tuple(texts[name] for name in ids)
            examples.append(RankingExample(query, documents, labels, tuple(ids), source.task))
    return examples


def _examples(source: Source, seed: int) -> list[RankingExample]:
    corpus = None
    if source.corpus is not None:
        corpus = {document.id: document.text for document in read_documents(source.corpus)}
    examples = read_examples(source.path, corpus=corpus)
    drawn = _drawn(dict(enumerate(examples)), source.limit, seed).values()
    return [example if example.task else replace(example, task=source.task) for example in drawn]


def _encode(
    examples: Sequence[RankingExample], encoder: Encoder, known: TextVectors | None
) -> None:
    if known is not None:
        texts = [text for example in examples for text in example.documents]
        known.encode(texts, encoder.encode_documents)


K = TypeVar("K")


def _drawn(items: Mapping[K, T], limit: int | None, seed: int) -> dict[K, T]:
    """So many of them, by chance, in their order."""
    if limit is None or limit >= len(items):
        return dict(items)
    kept = set(random.Random(seed).sample(list(items), limit))
    return {key: item for key, item in items.items() if key in kept}


def _ids(example: RankingExample) -> Sequence[str]:
    return example.ids or [str(place) for place in range(len(example.documents))]
