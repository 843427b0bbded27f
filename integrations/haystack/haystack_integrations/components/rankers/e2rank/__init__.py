"""E2RankRanker: listwise reranking that reuses the vectors of the index."""

import haystack_integrations.common.e2rank  # noqa: F401  # first: it names the missing extra
from haystack_integrations.components.rankers.e2rank.ranker import E2RankRanker

__all__ = ["E2RankRanker"]
