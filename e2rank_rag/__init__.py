"""e2rank_rag: one embedding model indexes, retrieves and listwise-reranks.

Importing this loads neither torch nor any framework: names are fetched when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from e2rank_rag.errors import CheckpointError, StoredVectorMismatch, StoreError
    from e2rank_rag.evidence import Evidence
    from e2rank_rag.explanation import Explanation
    from e2rank_rag.feedback import Feedback
    from e2rank_rag.indexing import IndexReport, index_documents, index_file
    from e2rank_rag.models.cross_encoder import CrossEncoder, RankT5
    from e2rank_rag.models.encoder import Encoder
    from e2rank_rag.models.resrank import ResRank
    from e2rank_rag.pipeline import SearchPipeline
    from e2rank_rag.rerankers import (
        CrossEncoderReranker,
        EvidenceReranker,
        ListwiseReranker,
        ResidualReranker,
        RocchioReranker,
        Window,
        load_reranker,
    )
    from e2rank_rag.store import LANGCHAIN_LAYOUT, Layout, QdrantStore
    from e2rank_rag.types import Document, Hit
    from e2rank_rag.words import Bm25

__version__ = "0.1.0"

_HOMES = {
    "Bm25": "words",
    "CheckpointError": "errors",
    "StoreError": "errors",
    "StoredVectorMismatch": "errors",
    "Document": "types",
    "Hit": "types",
    "Encoder": "models.encoder",
    "CrossEncoder": "models.cross_encoder",
    "RankT5": "models.cross_encoder",
    "Evidence": "evidence",
    "EvidenceReranker": "rerankers",
    "Explanation": "explanation",
    "Feedback": "feedback",
    "ListwiseReranker": "rerankers",
    "CrossEncoderReranker": "rerankers",
    "ResRank": "models.resrank",
    "ResidualReranker": "rerankers",
    "load_reranker": "rerankers",
    "RocchioReranker": "rerankers",
    "Window": "rerankers",
    "QdrantStore": "store",
    "Layout": "store",
    "LANGCHAIN_LAYOUT": "store",
    "SearchPipeline": "pipeline",
    "IndexReport": "indexing",
    "index_documents": "indexing",
    "index_file": "indexing",
}

__all__ = [
    "Bm25",
    "CheckpointError",
    "CrossEncoder",
    "CrossEncoderReranker",
    "Document",
    "Encoder",
    "Evidence",
    "EvidenceReranker",
    "Explanation",
    "Feedback",
    "Hit",
    "IndexReport",
    "LANGCHAIN_LAYOUT",
    "Layout",
    "ListwiseReranker",
    "QdrantStore",
    "RankT5",
    "ResRank",
    "ResidualReranker",
    "RocchioReranker",
    "SearchPipeline",
    "StoreError",
    "StoredVectorMismatch",
    "Window",
    "index_documents",
    "index_file",
    "load_reranker",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
