"""Reading the sources of a configuration: examples to train on, dev sets, and their vectors."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from e2rank_rag.documents import is_query, read_documents
from e2rank_rag.evaluation.collections import Collection
from e2rank_rag.models.encoder import Encoder
from e2rank_rag.prompts import SOURCE_TASKS
from e2rank_rag.training.config import Source
from e2rank_rag.training.dev_sets import DevSet, RetrievalSet
from e2rank_rag.training.examples import read_examples
from e2rank_rag.training.mining import Embedded, collection_documents, mine_lists
from e2rank_rag.training.relevance import grades, judgements, without_query
from e2rank_rag.training.vectors import TextVectors
from e2rank_rag.training.word_index import WordIndex
from e2rank_rag.types import Document, RankingExample
from e2rank_rag.words import Bm25

T = TypeVar("T")


def read_training(
    sources: Sequence[Source],
    encoder: Encoder,
    known: TextVectors | None,
    *,
    seed: int,
    mine: bool = True,
) -> list[list[RankingExample]]:
    """The examples of each source. The vectors of their documents are added to `known`.

    mine: False takes the relevant documents of a folder, and the examples of a file as they are.
    """
    read = []
    for source in sources:
        if is_mined(source) and mine:
            judged = Judged.read(source, seed)
            examples = list(mined(source, judged, encoder, known, add_missing=True).values())
        elif source.path.is_dir():
            examples = Judged.read(source, seed).relevant(source.task)
        else:
            examples = _examples(source, seed)
            _encode(examples, encoder, known)
        if not examples:
            raise ValueError(f"{source.path} has no query with a relevant document to train on")
        read.append(examples)
    return read


def is_mined(source: Source) -> bool:
    """Whether lists are mined: from a BEIR folder, or from the documents of a file of pairs."""
    return source.mine or source.path.is_dir()


def read_dev(
    sources: Sequence[Source], encoder: Encoder, known: TextVectors | None, *, seed: int
) -> list[DevSet]:
    """The dev set of each source, named by its folder or file."""
    return [_dev_set(source, encoder, known, seed) for source in sources]


def read_retrieval(sources: Sequence[Source], encoder: Encoder, *, seed: int) -> list[RetrievalSet]:
    """The dev set of each source for retrieval: queries, and documents to retrieve from.

    The documents are the relevant ones and those that the encoder retrieves for the queries; of a
    file that is not mined, all its documents. Each measurement encodes all of them.
    """
    sets = []
    for source in sources:
        judged = Judged.read(source, seed)
        others = [document.text for document in judged.documents]
        copies: dict[str, Sequence[str]] = {}
        if is_mined(source):
            lists = mined(source, judged, encoder, None, add_missing=False)
            others = [text for example in lists.values() for text in example.documents]
            copies = {id: example.copies for id, example in lists.items()}
        relevant = judged.relevant_texts()
        if not relevant:
            raise ValueError(f"{source.path} has no query with a relevant document to measure on")
        queries = {id: judged.queries[id] for id in relevant}
        sets.append(RetrievalSet.of(_name(source), queries, relevant, others, copies))
    return sets


def _dev_set(source: Source, encoder: Encoder, known: TextVectors | None, seed: int) -> DevSet:
    if is_mined(source):
        judged = Judged.read(source, seed)
        lists = mined(source, judged, encoder, known, add_missing=False)
        qrels = {
            id: {name: int(label) for name, label in judged.labels[id].items()} for id in lists
        }
    else:
        examples = _examples(source, seed)
        _encode(examples, encoder, known)
        lists = {str(number): example for number, example in enumerate(examples)}
        qrels = {
            id: {name: int(label) for name, label in zip(_ids(each), _measured(each), strict=True)}
            for id, each in lists.items()
        }
    return DevSet(
        name=_name(source),
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


def _measured(example: RankingExample) -> Sequence[float]:
    """The judgements; without any, the teacher's labels, to measure agreement with the teacher."""
    judged = judgements(example)
    return judged if any(label > 0 for label in judged) else example.labels


@dataclass(frozen=True)
class Judged:
    """Documents to mine, queries by id, and by query and document ids what is judged.

    first: the first example of each query, where the queries are of examples.
    """

    documents: Sequence[Document]
    queries: Mapping[str, str]
    labels: Mapping[str, Mapping[str, float]]
    first: Mapping[str, RankingExample] = field(default_factory=dict)

    @classmethod
    def read(cls, source: Source, seed: int) -> Judged:
        """Of a folder, or of a file and, where one is named, its corpus."""
        if source.path.exists() and not source.path.is_dir():
            # Of lists as they are, a corpus only has the texts.
            named = source.corpus if source.mine else None
            corpus = [] if named is None else list(read_documents(named))
            return cls.of(_examples(source, seed), corpus)
        collection = Collection.open(source.path)
        queries = _drawn(collection.queries(source.split), source.limit, seed)
        return cls(collection_documents(collection), queries, collection.qrels(source.split))

    @classmethod
    def of(cls, examples: Sequence[RankingExample], corpus: Sequence[Document] = ()) -> Judged:
        """All documents of a corpus and of these examples together, each text once; a query of
        several examples has the labels of all."""
        documents: dict[str, Document] = {}
        for document in corpus:
            documents.setdefault(document.text, document)
        ids = {text: document.id for text, document in documents.items()}
        taken = set(ids.values())
        if len(taken) < len(ids):
            twice = Counter(ids.values()).most_common(1)[0][0]
            raise ValueError(f"the corpus has two different documents with the id {twice!r}")
        for text in (text for example in examples for text in example.documents):
            if text not in ids:
                name = str(len(ids))
                while name in taken:
                    name += "+"
                taken.add(name)
                ids[text] = name
                documents[text] = Document(name, text)
        labels: dict[str, dict[str, float]] = {}
        first: dict[str, RankingExample] = {}
        for example in examples:
            judged = labels.setdefault(example.query, {})
            first.setdefault(example.query, example)
            for text, grade in zip(example.documents, grades(example), strict=True):
                judged[ids[text]] = max(grade, judged.get(ids[text], grade))
        return cls(list(documents.values()), {query: query for query in labels}, labels, first)

    def relevant(self, task: str | None) -> list[RankingExample]:
        """An example per query that has relevant documents in the dataset, with these documents."""
        documents = {document.id: document for document in self.documents}
        examples = []
        for id, query in self.queries.items():
            graded = self.labels[id].items()
            found = [(name, grade) for name, grade in graded if grade > 0 and name in documents]
            # Where queries are documents, both have one id.
            own = documents.get(id)
            copied = own is not None and own.text != query and is_query(own, query)
            if found:
                examples.append(
                    RankingExample(
                        query=query,
                        documents=tuple(documents[name].text for name, _ in found),
                        labels=tuple(float(grade) for _, grade in found),
                        ids=tuple(name for name, _ in found),
                        task=task,
                        copies=(own.text,) if own is not None and copied else (),
                    )
                )
        return examples

    def relevant_texts(self) -> dict[str, dict[str, float]]:
        """Relevant texts and their grades, by the id of each query that has any."""
        found: dict[str, dict[str, float]] = {}
        texts = {document.id: document.text for document in self.documents}
        for id in self.queries:
            for name, grade in self.labels.get(id, {}).items():
                if grade > 0 and name in texts:
                    graded = found.setdefault(id, {})
                    graded[texts[name]] = max(grade, graded.get(texts[name], grade))
        return found


def mined(
    source: Source,
    judged: Judged,
    encoder: Encoder,
    known: TextVectors | None,
    *,
    add_missing: bool,
) -> dict[str, RankingExample]:
    """By query id, the list of what a search retrieves, see `mining.mine_lists`.

    Each has the task and the source of its example; of a BEIR folder, the task of its `source`.
    """
    known = TextVectors(encoder.dim) if known is None else known
    texts = [document.text for document in judged.documents]
    known.encode(texts, encoder.encode_documents)
    lists = mine_lists(
        encoder,
        Embedded(judged.documents, known.of(texts), _word_index(source, texts)),
        judged.queries,
        judged.labels,
        depth=source.depth,
        first_negative=source.first_negative,
        add_missing=add_missing,
    )
    for id, example in lists.items():
        first = judged.first.get(id)
        task, named = (source.task, None) if first is None else (first.task, first.source)
        lists[id] = replace(example, task=task, source=named)
    return lists


def _word_index(source: Source, texts: Sequence[str]) -> WordIndex | None:
    if source.candidates == "dense":
        return None
    return WordIndex.of(Bm25(language=source.language), texts)


def _examples(source: Source, seed: int) -> list[RankingExample]:
    examples = read_examples(source.path, corpus=source.corpus)
    named: dict[str | None, dict[int, RankingExample]] = {}
    for number, example in enumerate(examples):
        named.setdefault(example.source, {})[number] = example
    drawn: dict[int, RankingExample] = {}
    for part in named.values():
        drawn |= _drawn(part, source.limit, seed)
    return [
        replace(without_query(drawn[number]), task=_task(drawn[number], source))
        for number in sorted(drawn)
    ]


def _task(example: RankingExample, source: Source) -> str | None:
    """The task of the line; without one, the source's; without one, that of its dataset."""
    known = example.source if example.source in SOURCE_TASKS else None
    return example.task or source.task or known


def _encode(
    examples: Sequence[RankingExample], encoder: Encoder, known: TextVectors | None
) -> None:
    if known is not None:
        texts = [text for example in examples for text in example.documents]
        known.encode(texts, encoder.encode_documents)


K = TypeVar("K")


def _drawn(items: Mapping[K, T], limit: int | None, seed: int) -> dict[K, T]:
    """At most `limit` of the items, drawn by the seed, in their order."""
    if limit is None or limit >= len(items):
        return dict(items)
    kept = set(random.Random(seed).sample(list(items), limit))
    return {key: item for key, item in items.items() if key in kept}


def _name(source: Source) -> str:
    return source.path.name.partition(".")[0]


def _ids(example: RankingExample) -> Sequence[str]:
    return example.ids or [str(place) for place in range(len(example.documents))]
