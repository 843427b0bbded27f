"""What each choice of a ResRank's layout is worth on dev data: one short run per choice.

    python benchmarks/resrank_ablation.py DATA WORK [--vectors FOLDER] [--only NAME]... [key=value]

DATA holds BEIR folders. Every run is the configuration resrank-minilm.yaml on at most 2,000 lists
of each of the collections of train_minilm.py, one seed, `--steps` steps, without a projection and
with one thing changed; it is measured once, at its end, on the five dev sets. WORK keeps the runs,
and those that are there are not run again: several processes may share it, each with other names.
Prints all that are there as markdown, and writes them to benchmarks/results/resrank_ablation.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from train_minilm import CONFIGS, sources

from e2rank_rag.bench.machine import this_machine
from e2rank_rag.training import train
from e2rank_rag.training.config import read_config
from e2rank_rag.training.run_folder import METRICS_FILE, RUN_FOLDER

RESULTS = Path(__file__).parent / "results" / "resrank_ablation.json"
LISTS = 2000
BEGIN = ["layout.projection=none"]
CHOICES: Mapping[str, list[str]] = {
    "the default, but projection: none": [],
    "projection: linear": ["layout.projection=linear"],
    "passage_positions: ranked": ["layout.passage_positions=ranked"],
    "passage_attention: own": ["layout.passage_attention=own"],
    "unit_hidden: false": ["layout.unit_hidden=false"],
    "query_position: after": ["layout.query_position=after"],
    "query_vector: end": ["layout.query_vector=end"],
    "query_residual: query": ["layout.query_residual=query"],
    "query_residual: none": ["layout.query_residual=none"],
    "residual: none": ["layout.residual=none"],
    "residual: sum": ["layout.residual=sum"],
    "gates: 0.3, 0.05": ["gates=[0.3, 0.05]"],
}


def measured(folder: Path) -> dict[str, float] | None:
    """The last figures of a run that has ended: nDCG@10 x 100 by dev set, `mean` and `retrieve`."""
    path = folder / RUN_FOLDER / METRICS_FILE
    if not (folder / "e2rank.json").is_file():
        return None
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    logged = [line for line in lines if "eval_rerank" in line][-1]
    ending = "_rerank"
    return {
        **{
            key.removeprefix("eval_").removesuffix(ending): 100 * value
            for key, value in logged.items()
            if key.endswith(ending) and key != "eval_rerank"
        },
        "mean": 100 * logged["eval_rerank"],
        "retrieve": 100 * logged["eval_retrieve"],
    }


def run(
    name: str, folder: Path, given: Mapping[str, Any], steps: int, overrides: list[str]
) -> None:
    ending = [f"trainer.{key}={steps}" for key in ("max_steps", "eval_steps", "save_steps")]
    settings = [*BEGIN, *CHOICES[name], *ending, *overrides]
    train(read_config(CONFIGS / "resrank-minilm.yaml", settings, {**given, "output": folder}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("settings", nargs="*", help="of every run")
    parser.add_argument("--vectors", type=Path)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--only", action="append", choices=CHOICES, default=None)
    arguments = parser.parse_intermixed_args()
    given = sources(arguments.data, arguments.work, "dense", seen=True)
    given["data"] = [{**part, "limit": LISTS} for part in given["data"]]  # type: ignore[attr-defined]
    given["vectors"] = arguments.vectors or arguments.work / "vectors"
    folders = {
        name: arguments.work / name.replace(": ", "-").replace(", ", "-").replace(" ", "-")
        for name in CHOICES
    }
    for name in arguments.only or CHOICES:
        if measured(folders[name]) is None:
            run(name, folders[name], given, arguments.steps, arguments.settings)
    found = {name: measured(folder) for name, folder in folders.items()}
    rows = {name: row for name, row in found.items() if row is not None}
    columns = list(next(iter(rows.values())))
    print(f"| | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for name, row in rows.items():
        print(f"| {name} | {' | '.join(f'{row[column]:.2f}' for column in columns)} |")
    record = {"machine": this_machine(), "steps": arguments.steps, "nDCG@10": rows}
    RESULTS.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
