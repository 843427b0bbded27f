"""E2RankRanker: listwise reranking that reuses the vectors of the index.

The modules with an underscore serve the e2rank embedders and the e2rank retriever too.
"""

try:
    import haystack  # noqa: F401
except ImportError as error:
    raise ImportError(
        "the Haystack components of e2rank need Haystack: pip install 'e2rank-rag[haystack]'"
    ) from error

from haystack_integrations.components.rankers.e2rank.ranker import E2RankRanker

__all__ = ["E2RankRanker"]
