"""One of two processes that train every stage together; started by `test_many_processes.py`.

python -m tests.training.stage_process NUMBER MEETING JOBS

Runs in a working folder of its own, where the model and the data are. JOBS is a JSON file: a list
of configurations and whether each goes on with an earlier run.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from e2rank_rag.training import train
from e2rank_rag.training.config import STAGES


def main(number: int, meeting: Path, jobs: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=number, world_size=2)
    # What torchrun sets; the port is not used, since the two have met already.
    os.environ.update(RANK=str(number), LOCAL_RANK=str(number), WORLD_SIZE="2")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29500")
    for settings, resume in json.loads(jobs.read_text()):
        config = STAGES[settings["stage"]].model_validate(settings)
        try:
            train(config, resume=resume)
        except (FileExistsError, ValueError) as error:
            sys.stdout.write(f"{config.output}: {type(error).__name__}: {error}\n")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
