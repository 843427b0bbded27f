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

    affinity: the cores that the process may run on; None where the system does not say it.
    usable_threads: the same with the container's quota.
    """
    import torch

    from e2rank_rag.threads import usable_threads

    info = _cpuinfo()
    return {
        "processor": info.get("model name") or platform.processor() or platform.machine(),
        "flags": processor_flags(),
        "cores": os.cpu_count() or 0,
        "affinity": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "usable_threads": usable_threads(),
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


def hardware_dtypes() -> list[str]:
    """What the processor multiplies in hardware: float32, and bfloat16 where it has it."""
    from e2rank_rag.models.cpu import has_bfloat16

    return ["float32", "bfloat16"] if has_bfloat16() else ["float32"]


def thread_pools() -> list[dict[str, Any]]:
    """The pools of threads that this process has loaded: library, kind and number of threads."""
    from threadpoolctl import threadpool_info

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
