"""What a second team of OpenMP threads in the process costs a short text on a CPU.

    python benchmarks/openmp_teams.py

Each round opens all-MiniLM-L6-v2 twice, in new processes: in one nothing else computes with torch,
in the other the main thread has multiplied two matrices before, which leaves it a team of OpenMP
threads beside that of the thread in which models run. Both encode 200 different queries, one at a
time; ratios of the medians are taken round by round. Writes benchmarks/results/openmp_teams.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from machine import machine, spread

from e2rank_rag.data import shipped_collection
from e2rank_rag.models.encoder import Encoder

RESULTS = Path(__file__).parent / "results" / "openmp_teams.json"
QUERIES = 200


def median_of_queries(*, second_team: bool) -> float:
    """Milliseconds."""
    if second_team:
        import torch

        matrix = torch.ones(500, 500)
        matrix @ matrix
    queries = list(shipped_collection("scifact").queries().values())[: QUERIES + 20]
    with Encoder.from_pretrained("minilm") as encoder:
        encoder.encode_queries(queries[QUERIES:])
        times = []
        for query in queries[:QUERIES]:
            started = time.perf_counter()
            encoder.encode_queries([query])
            times.append(1000 * (time.perf_counter() - started))
    return statistics.median(times)


def in_a_new_process(*arguments: str) -> float:
    command = [sys.executable, __file__, "--once", *arguments]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--once", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--second-team", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.once:
        print(median_of_queries(second_team=arguments.second_team))
        return
    pairs = [
        (in_a_new_process(), in_a_new_process("--second-team")) for _ in range(arguments.rounds)
    ]
    record = {
        "machine": machine(),
        "milliseconds, one team": spread([one for one, _ in pairs]),
        "milliseconds, two teams": spread([two for _, two in pairs]),
        "two teams / one": spread([two / one for one, two in pairs]),
    }
    RESULTS.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
