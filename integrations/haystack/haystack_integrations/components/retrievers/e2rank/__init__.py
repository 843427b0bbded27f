"""E2RankRetriever: query in, reranked documents out."""

import haystack_integrations.common.e2rank  # noqa: F401  # first: it names the missing extra
from haystack_integrations.components.retrievers.e2rank.retriever import E2RankRetriever

__all__ = ["E2RankRetriever"]
