"""The machine and the versions that times were measured with."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from e2rank_rag.models.encoder import Encoder
from e2rank_rag.report.records import Machine
from e2rank_rag.threads import usable_threads

PACKAGES = ("e2rank-rag", "torch", "transformers", "qdrant-client", "numpy")


def this_machine(encoder: Encoder) -> Machine:
    """The machine that this process runs on, and how the encoder uses it."""
    device = encoder.device
    threads = encoder.loaded.worker.run(torch.get_num_threads)
    parameter = next(encoder.loaded.transformer.parameters())
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return Machine(
        processor=_processor(),
        cores=usable_threads(),
        threads=threads,
        device=f"{device} ({name})" if name else str(device),
        dtype=str(parameter.dtype).removeprefix("torch."),
        system=f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        load=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        versions={name: number for name in PACKAGES if (number := _version(name))},
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
