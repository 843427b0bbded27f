"""docs/architecture.md is true: the calls that it lists happen, in its order.

Both walks are traced in a process of their own, so that the thread of the models starts after the
trace does.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")

TRACE = """
import contextlib, json, sys, threading

calls = []

def note(frame, event, argument):
    if event == "call":
        module = frame.f_globals.get("__name__", "")
        if module.startswith("e2rank_rag."):
            calls.append(f"{module.removeprefix('e2rank_rag.')}.{frame.f_code.co_qualname}")

@contextlib.contextmanager
def traced():
    threading.setprofile(note)
    sys.setprofile(note)
    try:
        yield
    finally:
        sys.setprofile(None)
        threading.setprofile(None)

"""

SEARCH = """
from e2rank_rag import Document, QdrantStore, SearchPipeline, index_documents, load_reranker

with traced():
    reranker = load_reranker("e2rank-minilm")
    store = QdrantStore.open(":memory:", "notes")
    documents = [Document("1", "Cats purr."), Document("2", "Dogs bark.")]
    index_documents(documents, reranker.encoder, store)
    calls.clear()
    SearchPipeline(reranker.encoder, store, reranker).search("who purrs?")
print(json.dumps(calls))
"""

TRAINING = """
from pathlib import Path
from e2rank_rag.training import adapt

lines = [
    {"query": f"who {word}?", "documents": [f"Cats {word}.", "Dogs bark."], "labels": [1, 0]}
    for word in ("purrs", "sleeps")
]
Path("lists.jsonl").write_text("".join(json.dumps(line) + chr(10) for line in lines))
with traced(), contextlib.redirect_stdout(sys.stderr):
    adapt("minilm", "lists.jsonl", "adapted", mine=False, trainer={"max_steps": 1})
print(json.dumps(calls))
"""


@pytest.mark.parametrize(
    ("heading", "walk"),
    [("The way of one query", SEARCH), ("The way of one training example", TRAINING)],
)
def test_the_listed_calls_happen_in_this_order(heading, walk, tmp_path):
    listed = calls_below(heading)
    assert 8 <= len(listed) <= 16
    made = traced(walk, tmp_path)
    missing = set(listed) - set(made)
    assert not missing
    assert in_order(listed, made) == len(listed), listed[in_order(listed, made)]


def calls_below(heading: str) -> list[str]:
    """The calls of a numbered list: `module.function` first in each line."""
    section = PAGE.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    return re.findall(r"^\d+\. `([\w.]+)`", section, flags=re.MULTILINE)


def traced(walk: str, folder: Path) -> list[str]:
    """Every function of the package that the walk calls, in every thread, in order."""
    done = subprocess.run(
        [sys.executable, "-c", TRACE + walk],
        capture_output=True,
        text=True,
        cwd=folder,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "HOME": str(folder)},
    )
    assert done.returncode == 0, done.stderr
    calls: list[str] = json.loads(done.stdout.splitlines()[-1])
    return calls


def in_order(listed: list[str], made: list[str]) -> int:
    """How many of the listed calls are made one after the other."""
    remaining = iter(made)
    for place, call in enumerate(listed):
        if call not in remaining:
            return place
    return len(listed)
