"""Tiny models are trained on one thread: several would wait for one another longer than they work,
and hundreds of times as long where other programs run beside."""

from __future__ import annotations

import json
from importlib.util import find_spec

import numpy as np
import pytest
import torch

TOPICS = ["cats", "dogs", "ferry", "bridge", "bread", "prime", "glacier", "router"]


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def pictures():
    """For a test that wants a training run to draw its metrics."""


@pytest.fixture(autouse=True)
def no_pictures(request, monkeypatch):
    """Drawing takes longer than most training runs here, so only tests with `pictures` do it."""
    if "pictures" not in request.fixturenames and find_spec("matplotlib") is not None:
        monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda *_, **__: None)


@pytest.fixture(scope="session")
def lists(tmp_path_factory):
    """Eight lists of eight documents with labels that nothing but memory can know."""
    path = tmp_path_factory.mktemp("lists") / "lists.jsonl"
    draw = np.random.default_rng(0)
    lines = []
    for topic in TOPICS:
        documents = [f"{topic} {other} {i}" for i, other in enumerate(TOPICS)]
        labels = draw.permutation(len(documents)).tolist()
        lines.append({"query": f"about {topic}", "documents": documents, "labels": labels})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path
