"""One of two processes that train together; `test_distributed.py` forks it."""

from __future__ import annotations

import os
from pathlib import Path

import torch
import torch.distributed as dist

from e2rank_rag.distributed import gather, gather_objects, process, processes, share
from e2rank_rag.training import train
from e2rank_rag.training.config import ContrastiveConfig


def train_as(number: int, folder: Path, configs: list[dict]) -> None:
    """Train each contrastive configuration as the process of this number."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder / 'meeting'}", rank=number, world_size=2
    )
    # What torchrun sets; the port is not used, since the two have met already.
    os.environ.update(RANK=str(number), LOCAL_RANK=str(number), WORLD_SIZE="2")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29500", OMP_NUM_THREADS="1")
    torch.save(gathered(), folder / f"gathered{number}.pt")
    for settings in configs:
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
