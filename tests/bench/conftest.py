"""What the parts measure at the tiniest size, with a tiny model, in the process of the tests."""

from __future__ import annotations

import pytest

from e2rank_rag.bench import PARTS, run_bench
from e2rank_rag.models import cpu
from tests.bench.sides import Here, tiny


@pytest.fixture(scope="session")
def result(tiny_bert):
    """All parts, as on a processor without bfloat16, which has fewer sides."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "has_bfloat16", bool)
        return run_bench(tiny(tiny_bert), PARTS, start=Here)
