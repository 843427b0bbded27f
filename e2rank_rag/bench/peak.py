"""The matrix peak: how many operations a second torch's products of large matrices reach."""

from __future__ import annotations

import time
from typing import Any

from e2rank_rag.bench.machine import hardware_dtypes
from e2rank_rag.bench.settings import Settings, threads_environment
from e2rank_rag.bench.sides import Answer, Sides, Start


def measure(settings: Settings, start: Start) -> dict[str, dict[str, float]]:
    """GFLOP/s by dtype and number of threads ("1", "2"): one thread, and all of the settings.

    bfloat16 is left out where the processor has none in hardware.
    """
    dtypes = hardware_dtypes()
    peaks: dict[str, dict[str, float]] = {dtype: {} for dtype in dtypes}
    for threads in sorted({1, settings.threads}):
        with Sides(start) as sides:
            side = sides.add(
                "torch", f"{__name__}:torch_products", {}, threads_environment(threads)
            )
            assert side is not None
            for dtype in dtypes:
                sizes = settings.sizes
                best = side(dtype=dtype, size=sizes.peak, seconds=sizes.peak_seconds).result
                peaks[dtype][str(threads)] = best
    return peaks


def torch_products() -> tuple[dict[str, Any], Answer]:
    """A side that multiplies square matrices."""
    import torch

    return {"threads": torch.get_num_threads()}, gflops


def gflops(dtype: str, size: int, seconds: float, device: str = "cpu") -> float:
    """The best of products of two [size, size] matrices, each repeated for `seconds`, in GFLOP/s.

    On x86, torch has two libraries for float32, MKL and oneDNN; the faster one counts.
    """
    import torch

    from e2rank_rag.models.cpu import use_onednn

    options: dict[str, Any] = {"dtype": getattr(torch, dtype), "device": device}
    matrix = torch.randn(size, size, **options)
    layer = torch.nn.Sequential(torch.nn.Linear(size, size, bias=False, **options))
    if (device, dtype) == ("cpu", "float32"):
        use_onednn(layer)
    products = [lambda: matrix @ matrix, lambda: layer(matrix)]
    finish = torch.cuda.synchronize if matrix.is_cuda else lambda: None
    best = float("inf")
    with torch.inference_mode():
        for product in products:
            product()  # the first one also chooses a kernel
            finish()
            until = time.perf_counter() + seconds
            while True:
                started = time.perf_counter()
                product()
                finish()
                ended = time.perf_counter()
                best = min(best, ended - started)
                if ended > until:
                    break
    return 2 * size**3 / best / 1e9
