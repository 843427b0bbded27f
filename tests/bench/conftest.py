"""What the parts measure at the tiniest size, with a tiny model, in the process of the tests."""

from __future__ import annotations

import pytest

from e2rank_rag.bench import PARTS, run_bench
from tests.bench.sides import Here, tiny


@pytest.fixture(scope="session")
def result(tiny_bert):
    """All parts, each side built once more for every part that needs it."""
    return run_bench(tiny(tiny_bert), PARTS, start=Here)
