"""The machine and the versions that times were measured with."""

from __future__ import annotations

import torch

from e2rank_rag.bench import machine
from e2rank_rag.models.encoder import Encoder
from e2rank_rag.report.records import Machine
from e2rank_rag.threads import usable_threads

PACKAGES = ("e2rank-rag", "torch", "transformers", "qdrant-client", "numpy")


def this_machine(encoder: Encoder) -> Machine:
    """The machine that this process runs on, and how the encoder uses it."""
    about = machine.this_machine()
    device = encoder.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    parameter = next(encoder.loaded.transformer.parameters())
    return Machine(
        processor=about["processor"],
        cores=usable_threads(),
        threads=encoder.loaded.worker.run(torch.get_num_threads),
        device=f"{device} ({name})" if name else str(device),
        dtype=str(parameter.dtype).removeprefix("torch."),
        system=f"{about['system']}, Python {about['python']}",
        load=about["load"][0] if about["load"] else None,
        versions={name: about[name] for name in PACKAGES if name in about},
    )
