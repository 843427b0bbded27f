"""How much a step of adapter training costs beside one of joint training, on the same lists.

    python benchmarks/training_step.py --rounds 3 --steps 3

SciFact's train split, lists of 16, batches of 8, MiniLM in float32. In adapter mode documents and
queries are frozen vectors, so a step computes the prompts only. The two take turns; what is
compared is the trainer's own time for the steps, without mining and encoding. Writes
benchmarks/results/training_step.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from e2rank_rag.bench.machine import this_machine
from e2rank_rag.data import shipped_collection
from e2rank_rag.models.encoder import Encoder
from e2rank_rag.training import train
from e2rank_rag.training.config import ListwiseConfig
from e2rank_rag.training.examples import write_examples
from e2rank_rag.training.mining import Embedded, mine_lists

RESULTS = Path(__file__).parent / "results" / "training_step.json"
LISTS = 64


def seconds_per_step(mode: str, lists: Path, folder: Path, steps: int) -> float:
    config = ListwiseConfig.model_validate(
        {
            "init_from": "minilm",
            "output": folder,
            "mode": mode,
            "lora": {"rank": 16, "alpha": 32},
            "data": [{"path": lists}],
            "prompt": {"depths": [5], "document_tokens": 80},
            "dropout": 0.0,
            "trainer": {
                "max_steps": steps,
                "per_device_train_batch_size": 8,
                "use_cpu": True,
                "disable_tqdm": True,
            },
        }
    )
    train(config)
    lines = (folder / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    runtime: float = json.loads(lines[-1])["train_runtime"]
    return runtime / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4)
    arguments = parser.parse_args()
    collection = shipped_collection("scifact")
    queries = dict(list(collection.queries("train").items())[:LISTS])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with Encoder.from_pretrained("minilm", device="cpu") as encoder:
            documents = list(collection.documents())[:1000]
            embedded = Embedded.of(encoder, documents)
            lists = mine_lists(encoder, embedded, queries, collection.qrels("train"), depth=16)
        write_examples(folder / "lists.jsonl", lists.values())
        seconds: dict[str, list[float]] = {"adapter": [], "joint": []}
        for turn in range(arguments.rounds):
            for mode in sorted(seconds, reverse=turn % 2 == 1):
                output = folder / f"{mode}{turn}"
                taken = seconds_per_step(mode, folder / "lists.jsonl", output, arguments.steps)
                seconds[mode].append(taken)
                print(f"{mode:8} {taken:.2f} s per step", flush=True)
    pairs = zip(seconds["joint"], seconds["adapter"], strict=True)
    ratios = [joint / adapter for joint, adapter in pairs]
    result = {
        "machine": this_machine(),
        "command": f"--rounds {arguments.rounds} --steps {arguments.steps}",
        "lists": len(lists),
        "seconds_per_step": seconds,
        "joint_over_adapter": {
            "min": min(ratios),
            "median": statistics.median(ratios),
            "max": max(ratios),
        },
    }
    RESULTS.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result["joint_over_adapter"], indent=2))


if __name__ == "__main__":
    main()
