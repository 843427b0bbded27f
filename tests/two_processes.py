"""One of two processes that train together; started by `test_distributed.py`.

python -m tests.two_processes NUMBER FOLDER

FOLDER holds `configs.json`, a list of contrastive configurations, each of which is trained.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from e2rank_rag.distributed import gather, gather_objects, process, processes, share
from e2rank_rag.training import train
from e2rank_rag.training.config import ContrastiveConfig


def main(number: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder / 'meeting'}", rank=number, world_size=2
    )
    # What torchrun sets; the port is not used, since the two have met already.
    os.environ.update(RANK=str(number), LOCAL_RANK=str(number), WORLD_SIZE="2")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29500")
    torch.save(gathered(), folder / f"gathered{number}.pt")
    for settings in json.loads((folder / "configs.json").read_text()):
        train(ContrastiveConfig.model_validate(settings))
    dist.destroy_process_group()


def gathered() -> dict[str, torch.Tensor]:
    """Rows that say whose they are, and the gradient of a loss that weighs them differently."""
    assert (process(), processes()) == (dist.get_rank(), 2)
    rows = torch.full((2, 3), float(process()), requires_grad=True)
    everywhere = gather(rows)
    weights = torch.arange(12.0).view(4, 3) * 10 ** process()
    (everywhere * weights).sum().backward()
    return {
        "rows": everywhere.detach(),
        "objects": gather_objects({"of": process(), "texts": share(["a", "b", "c"])}),
        "keys": gather(torch.tensor([process(), 2**62 + process()])),
        "gradient": rows.grad,
    }


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
