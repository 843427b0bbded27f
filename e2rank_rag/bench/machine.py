"""What a figure was measured on: processor, limits of the process, thread pools, versions."""

from __future__ import annotations

import os
import platform
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

FLAGS = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "amx_tile",
    "amx_bf16",
    "amx_int8",
    "asimd",
    "sve",
    "i8mm",
    "bf16",
)
"""Of a processor, as Linux names them: what matrix products can use. `bf16` is Arm's."""

BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16")
"""Any of these flags means that the processor multiplies bfloat16 in hardware."""

PACKAGES = (
    "e2rank-rag",
    "torch",
    "transformers",
    "tokenizers",
    "numpy",
    "qdrant-client",
    "sentence-transformers",
    "openvino",
    "haystack-ai",
    "sentence-transformers-haystack",
    "langchain-core",
    "langchain-classic",
    "langchain-qdrant",
)

VARIABLES = (
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "OMP_PROC_BIND",
    "GOMP_SPINCOUNT",
    "KMP_BLOCKTIME",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "TOKENIZERS_PARALLELISM",
)


def this_machine() -> dict[str, Any]:
    """Everything that a reader needs to compare a figure with one of his own; JSON-able.

    `pools` needs the package threadpoolctl, and is None without it.
    """
    import torch

    info = _cpuinfo()
    return {
        "processor": info.get("model name") or platform.processor() or platform.machine(),
        "flags": processor_flags(),
        "cores": os.cpu_count() or 0,
        "usable_cores": usable_cores(),
        "quota": cpu_quota(),
        "threads": torch.get_num_threads(),
        "pools": thread_pools(),
        "load": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "system": platform.platform(),
        "python": platform.python_version(),
        **versions(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def versions() -> dict[str, str]:
    """Of the packages that a comparison may use; those that are not installed are left out."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def processor_flags() -> list[str]:
    """The flags of `FLAGS` that this processor has; none where the system does not list them."""
    info = _cpuinfo()
    has = set((info.get("flags") or info.get("Features") or "").split())
    return [name for name in FLAGS if name in has]


def bfloat16_in_hardware() -> bool:
    """Whether the processor's flags name a product of bfloat16 matrices."""
    return not set(BFLOAT16).isdisjoint(processor_flags())


def usable_cores() -> int:
    """The cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_quota(root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """The cores' worth of time that the container may use; None without a limit.

    root: where the control groups of this process are mounted (version 2, else version 1).
    """
    try:
        limit, period = (root / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            limit = (root / "cpu" / "cpu.cfs_quota_us").read_text().strip()
            period = (root / "cpu" / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    if limit in ("max", "-1"):
        return None
    return int(limit) / int(period)


def thread_pools() -> list[dict[str, Any]] | None:
    """The pools of threads that this process has loaded: library, kind and number of threads."""
    try:
        from threadpoolctl import threadpool_info
    except ImportError:
        return None
    return [
        {"library": pool["prefix"], "kind": pool["user_api"], "threads": pool["num_threads"]}
        for pool in threadpool_info()
    ]


def _cpuinfo() -> dict[str, str]:
    """The first processor of /proc/cpuinfo; empty where there is no such file."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in text.split("\n\n", 1)[0].splitlines() if ":" in line)
    return {name.strip(): value.strip() for name, value in pairs}
