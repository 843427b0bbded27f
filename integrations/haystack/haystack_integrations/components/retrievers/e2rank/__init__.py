"""E2RankRetriever: query in, reranked documents out."""

from haystack_integrations.components.retrievers.e2rank.retriever import E2RankRetriever

__all__ = ["E2RankRetriever"]
