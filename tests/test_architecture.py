"""docs/architecture.md is true: its calls happen in its order, and no module imports upwards.

Both walks are traced in a forked process, so that the thread of the models starts after the trace
does.
"""

from __future__ import annotations

import ast
import contextlib
import json
import re
import sys
import threading
from pathlib import Path

import pytest
import torch

from e2rank_rag import Document, QdrantStore, SearchPipeline, index_documents, load_reranker
from e2rank_rag.training import adapt
from tests.forks import forked, outcome
from tests.kit import write_jsonl

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


@contextlib.contextmanager
def traced(calls):
    """Note every function of the package that is called, in every thread that starts."""

    def note(frame, event, argument):
        if event == "call":
            module = frame.f_globals.get("__name__", "")
            if module.startswith("e2rank_rag."):
                calls.append(f"{module.removeprefix('e2rank_rag.')}.{frame.f_code.co_qualname}")

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        yield
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


def search(folder):
    calls = []
    with traced(calls):
        reranker = load_reranker("e2rank-minilm")
        store = QdrantStore.open(":memory:", "notes")
        documents = [Document("1", "Cats purr."), Document("2", "Dogs bark.")]
        index_documents(documents, reranker.encoder, store)
        calls.clear()
        SearchPipeline(reranker.encoder, store, reranker).search("who purrs?")
    return calls


def training(folder):
    lists = [
        {"query": f"who {word}?", "documents": [f"Cats {word}.", "Dogs bark."], "labels": [1, 0]}
        for word in ("purrs", "sleeps")
    ]
    path, calls = write_jsonl(folder / "lists.jsonl", lists), []
    with traced(calls):
        adapt("minilm", path, folder / "adapted", mine=False, trainer={"max_steps": 1})
    return calls


WALKS = {"The way of one query": search, "The way of one training example": training}


@pytest.fixture(scope="module")
def walks(tmp_path_factory):
    """Every function of the package that each walk calls, in every thread, in order."""
    folder = tmp_path_factory.mktemp("walks")

    def walk():
        torch.set_num_threads(1)
        made = {heading: call(folder) for heading, call in WALKS.items()}
        (folder / "calls.json").write_text(json.dumps(made))

    assert outcome(forked(walk, seconds=120)) == 0
    return json.loads((folder / "calls.json").read_text())


@pytest.mark.parametrize("heading", WALKS)
def test_the_listed_calls_happen_in_this_order(heading, walks):
    listed = calls_below(heading)
    made = walks[heading]
    assert 8 <= len(listed) <= 16
    assert set(listed) <= set(made)
    in_order = calls_in_order(listed, made)
    assert in_order == len(listed), listed[in_order]


def test_modules_import_from_their_own_storey_and_those_below():
    storeys = {
        name: int(storey)
        for storey, names in re.findall(r"^\| (\d) \| (`.+?`) \|", PAGE, flags=re.MULTILINE)
        for name in re.findall(r"`(\w+)`", names)
    }
    package = ROOT / "e2rank_rag"
    files = {path.relative_to(package).with_suffix(""): path for path in package.rglob("*.py")}
    del files[Path("__init__")]  # it names what it exports
    assert set(storeys) == {place.parts[0] for place in files}
    upwards = [
        (place.as_posix(), name)
        for place, path in files.items()
        for name in imported(path)
        if storeys[name] < storeys[place.parts[0]]
    ]
    assert not upwards


def imported(path: Path) -> set[str]:
    """The modules and folders directly in the package that a file imports from, types included."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    names = [
        f"{node.module}.{each.name}"
        for node in nodes
        if isinstance(node, ast.ImportFrom)
        for each in node.names
    ]
    return {name.split(".")[1] for name in names if name.startswith("e2rank_rag.")}


def calls_below(heading: str) -> list[str]:
    """The calls of a numbered list: `module.function` first in each line."""
    section = PAGE.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    return re.findall(r"^\d+\. `([\w.]+)`", section, flags=re.MULTILINE)


def calls_in_order(listed: list[str], made: list[str]) -> int:
    """How many of the listed calls are made one after the other."""
    remaining = iter(made)
    for place, call in enumerate(listed):
        if call not in remaining:
            return place
    return len(listed)
