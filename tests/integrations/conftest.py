"""Fixtures of the tests of Haystack components."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def embedded(tiny_bert):
    """The documents of the kit with the vectors of the tiny model."""
    from haystack_integrations.components.embedders.e2rank import E2RankDocumentEmbedder

    from tests.integrations.haystack_kit import documents

    embedder = E2RankDocumentEmbedder(model=tiny_bert)
    answer = embedder.run(documents())["documents"]
    embedder.close()
    return answer
