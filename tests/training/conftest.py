"""Tiny models are trained on one thread: several would wait for one another longer than they work,
and hundreds of times as long where other programs run beside."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest
import torch

from e2rank_rag.evaluation.metrics import evaluate
from e2rank_rag.evaluation.runs import run_from_rankings
from e2rank_rag.training import train
from e2rank_rag.training.examples import read_examples
from e2rank_rag.training.loop import StageTrainer
from tests.kit import write_jsonl

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
    return write_jsonl(path, lines)


def ndcg(reranker, lists):
    """nDCG@10 of a file of lists, reranked, by their labels."""
    examples = read_examples(lists)
    rankings = reranker.rerank_batch(
        [example.query for example in examples], [example.documents for example in examples]
    )
    qrels = {
        str(number): {str(place): int(label) for place, label in enumerate(example.labels)}
        for number, example in enumerate(examples)
    }
    run = run_from_rankings({str(number): ranking for number, ranking in enumerate(rankings)})
    return evaluate(run, qrels, ["nDCG@10"])["nDCG@10"]


def stop_in_the_sixth_step(config, monkeypatch):
    """Train until Ctrl-C interrupts the sixth loss."""
    compute, calls = StageTrainer.compute_loss, []

    def interrupted(self, *arguments, **options):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return compute(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(StageTrainer, "compute_loss", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(config)
