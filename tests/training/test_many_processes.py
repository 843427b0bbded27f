"""Two processes, each in a working folder of its own, train every stage and go on with it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.training.conftest import TOPICS

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]

STEPS = 4

VARIANTS = {
    "contrastive": {"stage": "contrastive", "cross_device_negatives": True, "negatives": 2},
    "joint": {"stage": "listwise", "mode": "joint", "list_size": 4, "prompt": {"depths": [2]}},
    "adapter": {
        "stage": "listwise",
        "mode": "adapter",
        "lora": {"rank": 2},
        "list_size": 4,
        "prompt": {"depths": [2]},
        "vectors": "vectors",
    },
    "rankt5": {"stage": "rankt5", "structure": "encoder-only", "list_size": 4, "max_tokens": 40},
    "resrank": {"stage": "resrank", "mode": "frozen", "list_size": 4},
    "resrank-joint": {"stage": "resrank", "mode": "joint", "list_size": 4},
}


def configured(name, output, *, steps=STEPS, **trainer):
    return {
        "init_from": "base",
        "output": output,
        "data": [{"path": "lists.jsonl"}],
        "dev": [{"path": "dev.jsonl"}],
        "dropout": 0.1,  # its draws are part of what a run goes on with
        **VARIANTS[name],
        "trainer": {
            "max_steps": steps,
            "num_train_epochs": 4,
            "per_device_train_batch_size": 2,
            "learning_rate": 1e-3,
            "lr_scheduler_type": "constant",
            "warmup_steps": 0,
            "logging_steps": 1,
            "eval_steps": 2,
            "use_cpu": True,
            "disable_tqdm": True,
            "load_best_model_at_end": False,
            **trainer,
        },
    }


def jobs():
    """Each stage in one go; and in two, where the first process alone has what they go on with."""
    for name in VARIANTS:
        yield configured(name, f"whole/{name}"), False
        yield configured(name, f"parts/{name}", steps=STEPS // 2), False
        yield configured(name, f"parts/{name}"), True
    yield configured("joint", "best/joint", load_best_model_at_end=True), False
    yield configured("joint", "whole/joint"), False  # which is there already
    yield configured("joint", "nothing/joint"), True  # which is not there
    yield configured("joint", "other/joint") | {"data": [{"path": "other.jsonl"}]}, False


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_bert):
    """The working folders of both processes, and what each printed."""
    here = tmp_path_factory.mktemp("processes")
    lines = []
    for place, topic in enumerate(TOPICS):
        documents = [f"{topic} {other} {i}" for i, other in enumerate(TOPICS[:5])]
        labels = [1.0 if i == place % 5 else 0.0 for i in range(5)]
        lines.append({"query": f"about {topic}", "documents": documents, "labels": labels})
    (here / "jobs.json").write_text(json.dumps(list(jobs())))
    folders = [here / "first", here / "second"]
    for folder in folders:
        shutil.copytree(tiny_bert, folder / "base")
        other = lines[:5] if folder.name == "first" else lines
        for name, part in (("lists", lines), ("dev", lines[:3]), ("other", other)):
            text = "".join(json.dumps(line) + "\n" for line in part)
            (folder / f"{name}.jsonl").write_text(text)
    command = [sys.executable, "-m", "tests.training.stage_process"]
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    workers = [
        subprocess.Popen(
            [*command, str(number), str(here / "meeting"), str(here / "jobs.json")],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number, folder in enumerate(folders)
    ]
    said = [worker.communicate(timeout=400)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0]
    return *folders, said


def weights(folder):
    return {
        f"{path.relative_to(folder)}/{name}": tensor
        for path in sorted(folder.rglob("*.safetensors"))
        if "run" not in path.relative_to(folder).parts
        for name, tensor in load_file(path).items()
    }


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_every_stage_runs_on_many_processes_without_a_shared_disk_and_only_rank_0_writes(
    trained, tiny_bert
):
    first, second, _ = trained
    given = [f"base/{name}" for name in files(tiny_bert)]
    assert files(second) == sorted([*given, "dev.jsonl", "lists.jsonl", "other.jsonl"])
    assert [path.name for path in second.iterdir() if path.is_dir()] == ["base"]
    for name in VARIANTS:
        run = first / "whole" / name / "run"
        logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert [each["step"] for each in logged if "loss" in each] == list(range(1, STEPS + 1))
        assert sum("eval_mean" in each for each in logged) == 2
        assert json.loads((run / "run.json").read_text())["data"][0]["examples"] == len(TOPICS)
        assert (run / "metrics.png").stat().st_size > 1000
        states = [path.name for path in (run / "checkpoints").glob("*/rng_state_*.pth")]
        assert sorted(states) == ["rng_state_0.pth"] * 2 + ["rng_state_1.pth"] * 2
    assert len(list((first / "vectors").iterdir())) == 1


@pytest.mark.parametrize("name", VARIANTS)
def test_a_run_of_two_processes_goes_on_with_what_the_first_one_kept(trained, name):
    first, *_ = trained
    whole, parts = weights(first / "whole" / name), weights(first / "parts" / name)
    assert whole.keys() == parts.keys()
    for key, tensor in whole.items():
        torch.testing.assert_close(parts[key], tensor, rtol=0, atol=1e-6, msg=key)


def test_the_best_state_is_kept_where_one_process_alone_has_it(trained):
    first, *_ = trained
    assert weights(first / "best" / "joint")


def test_what_stops_one_process_stops_all(trained):
    _, _, said = trained
    for text in said:
        assert "whole/joint: FileExistsError: whole/joint/run holds the record" in text
        assert "nothing/joint: ValueError: nothing/joint/run/checkpoints holds no check" in text
        assert "ValueError: process 1 has read [8] examples of the sources, process 0 [5]" in text
