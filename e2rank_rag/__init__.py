"""e2rank_rag: one embedding model indexes, retrieves and listwise-reranks."""

__version__ = "0.1.0"
