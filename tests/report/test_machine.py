"""The machine is described by what this process uses."""

from __future__ import annotations

from importlib.metadata import version

from e2rank_rag import __version__
from e2rank_rag.report.machine import this_machine


def test_the_machine_names_processor_threads_and_versions(bert):
    machine = this_machine(bert)
    assert machine.processor
    assert machine.cores >= 1
    assert machine.threads >= 1
    assert (machine.device, machine.dtype) == (str(bert.device), "float32")
    assert machine.versions["torch"] == version("torch")
    assert machine.versions["e2rank-rag"] == __version__
