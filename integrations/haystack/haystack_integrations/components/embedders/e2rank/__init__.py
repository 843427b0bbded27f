"""E2RankTextEmbedder for queries, E2RankDocumentEmbedder for the documents they search."""

import haystack_integrations.common.e2rank  # noqa: F401  # first: it names the missing extra
from haystack_integrations.components.embedders.e2rank.document_embedder import (
    E2RankDocumentEmbedder,
)
from haystack_integrations.components.embedders.e2rank.text_embedder import E2RankTextEmbedder

__all__ = ["E2RankDocumentEmbedder", "E2RankTextEmbedder"]
