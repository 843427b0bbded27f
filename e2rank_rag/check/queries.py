"""Queries to measure with: a user's own, or made of the documents themselves."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from e2rank_rag.check.sample import TITLES, StoredText
from e2rank_rag.documents import read_numbered
from e2rank_rag.evaluation.runs import Qrels, read_qrels

Judged = Literal["qrels", "judge", "made-up"]
"""Who says which documents are relevant: people, a chat model, or nobody: a made-up query has the
document that it was made of."""

MADE_UP = 32
LEAST_WORDS, MOST_WORDS = 4, 32
"""Words of a sentence that can be a query."""

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


@dataclass(frozen=True)
class Queries:
    """texts: query id -> text. qrels: query id -> document id -> grade; empty until a judge has
    answered. left_out: queries of the file that nobody judged."""

    texts: dict[str, str]
    qrels: Qrels
    judged: Judged
    left_out: int = 0


def own_queries(path: Path, qrels: Path | None) -> Queries:
    """The queries of a file of JSON lines with `_id` and `text`; with qrels, the judged ones.

    ValueError for a repeated id, a bad line, and qrels of which no query is in the file.
    """
    texts: dict[str, str] = {}
    for line, query in read_numbered(path):
        if query.id in texts:
            raise ValueError(f"{path}, line {line}: query id {query.id!r} is there twice")
        texts[query.id] = query.text
    if not texts:
        raise ValueError(f"{path} holds no query: give JSON lines with _id and text")
    if qrels is None:
        return Queries(texts, {}, "judge")
    grades = read_qrels(qrels)
    judged = {id: text for id, text in texts.items() if id in grades}
    if not judged:
        raise ValueError(
            f"{qrels} judges none of the {len(texts)} queries in {path}: its first column must "
            f"hold their ids, such as {next(iter(texts))!r}"
        )
    return Queries(
        judged, {id: grades[id] for id in judged}, "qrels", left_out=len(texts) - len(judged)
    )


def made_up(texts: Sequence[StoredText], seed: int) -> Queries:
    """A query from each of some documents: its title, else a sentence of its text.

    Its only relevant document is its own. The document has all words of such a query, which no
    user knows, so these queries favour searches by words.
    """
    generator = random.Random(seed)
    chosen = generator.sample(texts, min(len(texts), 2 * MADE_UP))
    made: dict[str, str] = {}
    qrels = {}
    for text in chosen:
        query = _query(text, generator)
        if query is not None and len(made) < MADE_UP:
            id = f"made-up-{len(made) + 1}"
            made[id], qrels[id] = query, {text.id: 1}
    return Queries(made, qrels, "made-up")


def _query(text: StoredText, generator: random.Random) -> str | None:
    for name in TITLES:
        if text.fields.get(name, "").strip():
            return " ".join(text.fields[name].split())
    sentences = [" ".join(each.split()) for each in _SENTENCE_END.split(text.content)]
    fit = [each for each in sentences if LEAST_WORDS <= len(each.split()) <= MOST_WORDS]
    return generator.choice(fit) if fit else None
