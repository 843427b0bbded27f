"""What one training step of 256 pairs takes above the memory before it, in MB.

Started by `training/test_gradcache.py`:

python -m tests.step_memory CHUNK_SIZE        256 is the batch at once
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from transformers import BertConfig, BertModel

from e2rank_rag.losses import info_nce_loss
from e2rank_rag.training.gradcache import embed

PAIRS, LENGTH = 256, 32


def main(chunk_size: int) -> float:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = BertModel(
        BertConfig(
            vocab_size=1000,
            hidden_size=128,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=4,
        ),
        add_pooling_layer=False,
    ).train()
    sides = [chunks(chunk_size) for _ in range(2)]
    # The kernel's peak from here on.
    Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmRSS")
    vectors = (embed(model, side) for side in sides)
    info_nce_loss(*vectors, torch.arange(PAIRS), temperature=0.03).backward()
    return (memory("VmHWM") - before) / 1024


def chunks(size: int) -> list[dict[str, torch.Tensor]]:
    ones = torch.ones(size, LENGTH, dtype=torch.long)
    return [
        {"input_ids": ids, "attention_mask": ones, "pool_slots": ones}
        for ids in torch.randint(1000, (PAIRS, LENGTH)).split(size)
    ]


def memory(name: str) -> int:
    (line,) = (x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(name))
    return int(line.split()[1])


if __name__ == "__main__":
    sys.stdout.write(f"{main(int(sys.argv[1])):.1f}\n")
