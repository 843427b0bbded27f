"""Rerankers: candidates in, the same documents out in a better order.

    reranker = load_reranker("e2rank-minilm")
    hits = reranker.rerank("where is Paris?", ["Cats purr.", "Paris is in France."])

- ListwiseReranker (E2Rank, arXiv 2510.22733): one pass over the query and the first K texts gives
  a vector; a document's score is its cosine with that vector, plus what the words of the candidates
  add where the model's recipe has `evidence`;
- EvidenceReranker: the query's vector moved by feedback, and the words of the candidates, without a
  prompt;
- RocchioReranker: the query's vector, moved towards the vectors of the first documents, without a
  forward pass;
- ResidualReranker (ResRank): one pass over the query's text and one vector per candidate; the score
  is the cosine of the output vectors;
- CrossEncoderReranker (RankT5, arXiv 2210.10634): one pass over each candidate's text with the
  query.

Scores are comparable within one query, not across queries.
"""

from e2rank_rag.rerankers.base import BaseReranker, Reranking, RerankReport
from e2rank_rag.rerankers.cross_encoder import CrossEncoderReranker
from e2rank_rag.rerankers.evidence import EvidenceReranker
from e2rank_rag.rerankers.listwise import ListwiseReranker
from e2rank_rag.rerankers.loading import load_reranker
from e2rank_rag.rerankers.ranking import Window, rank, score_by_vector
from e2rank_rag.rerankers.residual import ResidualReranker
from e2rank_rag.rerankers.rocchio import RocchioReranker

__all__ = [
    "BaseReranker",
    "CrossEncoderReranker",
    "EvidenceReranker",
    "ListwiseReranker",
    "RerankReport",
    "Reranking",
    "ResidualReranker",
    "RocchioReranker",
    "Window",
    "load_reranker",
    "rank",
    "score_by_vector",
]
