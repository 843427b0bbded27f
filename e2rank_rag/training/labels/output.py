"""The file that labelling appends to: one JSON object for each list."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from e2rank_rag.lines import read_raw_lines
from e2rank_rag.training.examples import named
from e2rank_rag.types import RankingExample


def list_key(query: str, documents: Sequence[str]) -> bytes:
    """The same for two lists with the same query and the same documents in the same order."""
    return hashlib.sha256(json.dumps([query, *documents]).encode()).digest()


def labelled_line(
    record: Mapping[str, Any], example: RankingExample, ranking: Sequence[int]
) -> str:
    """One line of the file; ValueError if the ranking is not a permutation of 1 to n."""
    count = len(example.documents)
    if sorted(ranking) != list(range(1, count + 1)):
        raise ValueError(f"the teacher's ranking {ranking} is no permutation of 1 to {count}")
    line: dict[str, Any] = {"teacher": dict(record), "query": example.query}
    if example.ids:
        line["ids"] = example.ids
    line["documents"] = example.documents
    if example.labels:
        line["labels"] = example.labels
    line["ranking"] = ranking
    line |= named(example)
    return json.dumps(line, ensure_ascii=False) + "\n"


def labelled_keys(
    path: Path, record: Mapping[str, Any], keys: Collection[bytes], list_size: int
) -> set[bytes]:
    """The keys of the lists in the file. If this teacher left its last line unfinished, the line is
    removed from the file.

    keys: of all lists to label; ValueError if the file holds another one, or another teacher's.
    """
    if not path.exists():
        return set()
    start = json.dumps({"teacher": dict(record)}, ensure_ascii=False)[:-1].encode()
    done = set()
    whole = 0
    for number, line in read_raw_lines(path):
        if not line.endswith(b"\n") and (line.startswith(start) or start.startswith(line)):
            break  # the process was killed while it wrote
        try:
            key = _key_of_line(line, record)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
        if key not in keys:
            raise ValueError(
                f"{path}, line {number}: this list is not among those to label, cut to "
                f"list_size {list_size}; name another file, or use the same lists and size"
            )
        done.add(key)
        whole += len(line)
    if whole < path.stat().st_size:
        os.truncate(path, whole)
    return done


def _key_of_line(line: bytes, record: Mapping[str, Any]) -> bytes:
    another = "name another file for the labels"
    try:
        fields = json.loads(line)
        query, documents, teacher = fields["query"], fields["documents"], fields["teacher"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"not a list that a teacher labelled ({error!r}); {another}") from error
    if teacher != record:
        raise ValueError(
            f"labelled by {teacher}, and the teacher is {dict(record)} now; {another}, or use the "
            "same teacher and settings"
        )
    return list_key(query, documents)
