"""Training examples from files: a query with documents and their labels, one JSON object a line.

    {"query": "...", "documents": ["...", ...], "labels": [2, 0, ...]}     graded
    {"query": "...", "documents": ["...", ...], "ranking": [3, 1, ...]}    a teacher's order
    {"query": "...", "ids": ["d7", ...], "labels": [1, ...]}               texts in a corpus file
    {"query": "...", "pos": "..." or ["..."], "neg": ["...", ...]}         pairs, triples

`document` is read as `documents`, `positive(s)` and `negative(s)` as `pos` and `neg`, as the
released E2Rank data and common pair files have them. A ranking is a permutation counted from 1,
best first: the best of n documents gets the label n, the last 1. If a line has labels too, they are
judgements, and the document with the highest one is the known positive. Without a ranking, labels
that are 1 to n, each once, with n at least 4, are read as a ranking. `source` names the dataset of
a line, if several datasets share a file.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from e2rank_rag.documents import read_documents
from e2rank_rag.lines import decode, read_lines, write_bytes
from e2rank_rag.training.relevance import is_order, judgements
from e2rank_rag.types import RankingExample

logger = logging.getLogger(__name__)

Corpus = Mapping[str, str]
"""document id -> text."""


class _Line(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    query: str
    documents: list[str] | None = Field(
        None, validation_alias=AliasChoices("documents", "document")
    )
    labels: list[float | int] | None = None
    ranking: list[int] | None = None
    ids: list[str] = []
    positives: str | list[str] | None = Field(
        None, validation_alias=AliasChoices("pos", "positive", "positives")
    )
    negatives: str | list[str] = Field(
        [], validation_alias=AliasChoices("neg", "negative", "negatives")
    )
    task: str | None = None
    source: Any = None


def read_examples(path: str | Path, *, corpus: Corpus | Path | None = None) -> list[RankingExample]:
    """The examples of a `.jsonl` or `.jsonl.gz` file, in file order. Equal texts are one string.

    corpus: texts of the ids, for lines that hold ids only; or a file of documents, see
        `read_documents`.

    A warning counts the lines whose labels are read as a ranking.

    Raises:
        OSError: the file is not there.
        ValueError: `FILE, line N: reason`: no JSON, an empty query or document, no document with a
            positive label, labels or ids of another number than documents, a ranking that is no
            permutation, an id that the corpus lacks. Also for a file without any example.
    """
    if isinstance(corpus, Path):
        corpus = {document.id: document.text for document in read_documents(corpus)}
    texts: dict[str, str] = {}
    examples = []
    orders = []
    for number, line in read_lines(path):
        try:
            example = _example(_parsed(line), corpus)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
        documents = tuple(texts.setdefault(text, text) for text in example.documents)
        examples.append(replace(example, documents=documents))
        if example.judged is None and is_order(example):
            orders.append(number)
    if not examples:
        raise ValueError(f"{path} holds no example")
    if orders:
        logger.warning(
            "%s: %d of the lines, the first is line %d, have labels that are 1 to n, each once: "
            "they are read as a teacher's order, whose best document alone is relevant; where they "
            "are grades, write their order as `ranking` beside them",
            path,
            len(orders),
            orders[0],
        )
    return examples


def write_examples(
    path: str | Path, examples: Iterable[RankingExample], *, texts: bool = True
) -> None:
    """Write a file for `read_examples`, with texts, or with `texts=False` with ids alone.

    ValueError for an example without ids, if texts are left out.
    """
    lines = []
    for example in examples:
        record: dict[str, Any] = {"query": example.query}
        if example.ids:
            record["ids"] = list(example.ids)
        elif not texts:
            raise ValueError(f"the documents of query {example.query!r} have no ids; write texts")
        if texts:
            record["documents"] = list(example.documents)
        if is_order(example):
            record["ranking"] = ranking_of(example.labels)
        labels = judgements(example)
        if labels:
            record["labels"] = [_plain(label) for label in labels]
        record |= named(example)
        lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    write_bytes(path, "".join(lines).encode())


def _parsed(line: bytes) -> _Line:
    try:
        return _Line.model_validate_json(decode(line))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the line"
        raise ValueError(f"{where}: {first['msg']}") from error


def _example(line: _Line, corpus: Corpus | None) -> RankingExample:
    if not line.query.strip():
        raise ValueError("query is empty")
    if line.positives is not None:
        documents, labels = _pair(line)
    else:
        documents = _documents(line, corpus)
        labels = _labels(line, len(documents))
    for place, document in enumerate(documents):
        if not document.strip():
            raise ValueError(f"document {place} is empty")
    if line.ids and len(line.ids) != len(documents):
        raise ValueError(f"{len(documents)} documents came with {len(line.ids)} ids")
    if not any(label > 0 for label in labels):
        raise ValueError("no document has a label above 0; a list needs a positive")
    known, judged = None, None
    if line.ranking is not None and line.positives is None:
        judged = tuple(float(label) for label in line.labels or ())
        if any(label > 0 for label in judged):
            known = max(range(len(judged)), key=judged.__getitem__)
    return RankingExample(
        query=line.query,
        documents=tuple(documents),
        labels=tuple(labels),
        ids=tuple(line.ids),
        task=line.task,
        positive=known,
        judged=judged,
        source=line.source if isinstance(line.source, str) else None,
    )


def _pair(line: _Line) -> tuple[list[str], list[float]]:
    positives, negatives = (
        [side] if isinstance(side, str) else list(side or [])
        for side in (line.positives, line.negatives)
    )
    return [*positives, *negatives], [1.0] * len(positives) + [0.0] * len(negatives)


def _documents(line: _Line, corpus: Corpus | None) -> list[str]:
    if line.documents is not None:
        return line.documents
    if not line.ids:
        raise ValueError("no documents: expected documents, ids, or pos")
    if corpus is None:
        raise ValueError("the line holds ids only; name the corpus that has their texts")
    missing = [id for id in line.ids if id not in corpus]
    if missing:
        raise ValueError(f"the corpus lacks {len(missing)} of the ids, among them {missing[0]!r}")
    return [corpus[id] for id in line.ids]


def _labels(line: _Line, count: int) -> list[float]:
    if line.labels is None and line.ranking is None:
        raise ValueError("no labels: expected labels, a ranking, or pos and neg")
    if line.labels is not None and len(line.labels) != count:
        raise ValueError(f"{count} documents came with {len(line.labels)} labels")
    labels = [float(label) for label in line.labels or []]
    if not all(math.isfinite(label) for label in labels):
        raise ValueError("a label is not a finite number")
    if line.ranking is not None:
        if sorted(line.ranking) != list(range(1, count + 1)):
            raise ValueError(f"ranking is no permutation of 1 to {count}")
        labels = [0.0] * count
        for place, document in enumerate(line.ranking):
            labels[document - 1] = float(count - place)
    return labels


def ranking_of(labels: Sequence[float]) -> list[int]:
    """The documents by their labels, counted from 1, best first."""
    return [place + 1 for place in sorted(range(len(labels)), key=lambda place: -labels[place])]


def named(example: RankingExample) -> dict[str, str]:
    """The fields `task` and `source` of a line, if the example has them."""
    fields = {"task": example.task, "source": example.source}
    return {name: value for name, value in fields.items() if value is not None}


def _plain(label: float) -> float | int:
    return int(label) if float(label).is_integer() else label
