"""Two processes with half a batch each give the gradient of one process with the whole batch."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from e2rank_rag.distributed import gather, process, processes
from e2rank_rag.training import train
from e2rank_rag.training.config import ContrastiveConfig
from tests.forks import forked, outcome
from tests.two_processes import train_as

MEASURING = {
    "eval_steps": 1,
    "save_strategy": "no",
    "load_best_model_at_end": False,
    "learning_rate": 0.0,  # a last digit of the weights would change the order of near vectors
}

VARIANTS = {
    "direct": {"chunk_size": None},
    "chunks": {"chunk_size": 3},
    "near": {"chunk_size": None, "near_positive": 0.9},
    "accumulated": {"chunk_size": 3, "trainer": {"gradient_accumulation_steps": 2}},
    "measured": {"chunk_size": None, "dev": ["a", "b"], "trainer": MEASURING},
}
"""What is trained for one step, each by one process and by two."""

BATCH = 8
"""Of both processes."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_bert):
    """Folder of the models `NAME-1` and `NAME-2`, trained by one process and by two."""
    folder = tmp_path_factory.mktemp("distributed")
    topics = ["cats", "dogs", "ferry", "bridge", "bread", "prime", "glacier", "router"]
    pairs = [
        {"query": f"about {a}", "pos": f"{a} and {b}", "neg": [f"{b} without {a}", f"no {b}"]}
        for a, b in zip(topics, topics[1:] + topics[:1], strict=True)
    ]
    # Copies that other processes hold: of a positive, and of a query with another positive.
    pairs[5]["neg"] = [pairs[0]["pos"]]
    pairs[6]["query"] = pairs[1]["query"]
    for name, records in (("a", pairs), ("b", pairs[::-1])):
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (folder / f"{name}.jsonl").write_text(lines)
    alone, together = (
        [configured(folder, tiny_bert, name, count) for name in VARIANTS] for count in (1, 2)
    )
    workers = [
        forked(lambda number=number: train_as(number, folder, together), seconds=300)
        for number in range(2)
    ]
    for settings in alone:
        train(ContrastiveConfig.model_validate(settings))
    assert [outcome(worker) for worker in workers] == [0, 0]
    return folder


def configured(folder, model, name, count):
    variant = dict(VARIANTS[name])
    variant["dev"] = [{"path": str(folder / f"{part}.jsonl")} for part in variant.pop("dev", ())]
    return {
        "init_from": str(model),
        "output": str(folder / f"{name}-{count}"),
        "data": [{"path": str(folder / "a.jsonl")}, {"path": str(folder / "b.jsonl")}],
        "dropout": 0.0,
        "negatives": 2,
        "temperature": 0.2,  # gradients near 1, to which 1e-6 is small
        "cross_device_negatives": True,
        # The weights move by the gradient itself.
        "trainer": {
            "max_steps": 1,
            "per_device_train_batch_size": BATCH // count,
            "optim": "sgd",
            "learning_rate": 1.0,
            "lr_scheduler_type": "constant",
            "warmup_steps": 0,
            "max_grad_norm": 0,
            "logging_steps": 1,
            "use_cpu": True,
            "disable_tqdm": True,
            **variant.pop("trainer", {}),
        },
        **variant,
    }


@pytest.mark.parametrize("name", [name for name in VARIANTS if name != "measured"])
def test_two_processes_give_one_process_gradient(trained, tiny_bert, name):
    before = load_file(tiny_bert / "model.safetensors")
    one, two = (load_file(trained / f"{name}-{count}" / "model.safetensors") for count in (1, 2))
    assert max(float((one[key] - before[key]).abs().max()) for key in one) > 0.01
    for key in one:
        torch.testing.assert_close(two[key], one[key], rtol=0, atol=1e-6, msg=key)


@pytest.mark.parametrize("name", VARIANTS)
def test_two_processes_compare_with_what_one_compares_with(trained, name):
    logged = []
    for count in (1, 2):
        run = trained / f"{name}-{count}" / "run"
        assert json.loads((run / "run.json").read_text())["negatives"] == {"hard": 2, "in_all": 23}
        logged.append(json.loads((run / "metrics.jsonl").read_text().splitlines()[0]))
    # The step's loss is the mean over processes; "negatives" is logged by the first of them.
    assert logged[1]["loss"] == pytest.approx(logged[0]["loss"], abs=1e-5)


def test_the_near_positive_mask_was_at_work(trained):
    negatives = {
        name: json.loads((trained / f"{name}-1/run/metrics.jsonl").read_text().splitlines()[0])[
            "negatives"
        ]
        for name in ("direct", "near")
    }
    assert negatives["near"] < negatives["direct"]


def test_gathered_rows_are_those_of_all_processes_in_order(trained):
    for number in range(2):
        found = torch.load(trained / f"gathered{number}.pt")
        assert found["rows"].tolist() == [[0.0] * 3, [0.0] * 3, [1.0] * 3, [1.0] * 3]
        assert found["keys"].tolist() == [0, 2**62, 1, 2**62 + 1]


def test_gathered_objects_are_those_of_all_processes_in_order(trained):
    for number in range(2):
        found = torch.load(trained / f"gathered{number}.pt")["objects"]
        assert found == [{"of": 0, "texts": ["a", "c"]}, {"of": 1, "texts": ["b"]}]


def test_two_processes_measure_what_one_measures(trained):
    figures = []
    for count in (1, 2):
        lines = (trained / f"measured-{count}" / "run" / "metrics.jsonl").read_text().splitlines()
        figures += [each for each in map(json.loads, lines) if "eval_mean" in each]
    assert {"eval_a_retrieve", "eval_b_retrieve", "eval_mean"} < set(figures[0])
    for name in ("eval_a_retrieve", "eval_b_retrieve", "eval_mean"):
        assert figures[1][name] == pytest.approx(figures[0][name], abs=1e-6)


def test_a_gathered_row_has_the_gradients_of_all_processes(trained):
    # Weights 0 to 11 in one process, ten times that in the other.
    whole = torch.arange(12.0).view(4, 3) * 11
    for number in range(2):
        found = torch.load(trained / f"gathered{number}.pt")
        torch.testing.assert_close(found["gradient"], whole[2 * number : 2 * number + 2])


def test_one_process_gathers_nothing():
    rows = torch.ones(2, 3)
    assert gather(rows) is rows
    assert (process(), processes()) == (0, 1)
