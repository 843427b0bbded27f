"""E2Rank in LangChain: one model embeds, retrieves and listwise-reranks.

    store = E2RankVectorStore.from_texts(texts, E2RankEmbeddings(model="e2rank-minilm"))
    retriever = E2RankRetriever(vectorstore=store, k=5)
    documents = retriever.invoke("does vitamin D prevent falls?")

The components convert LangChain's documents, call `e2rank_rag`, and convert back.
"""

from __future__ import annotations

try:
    import langchain_core  # noqa: F401
except ModuleNotFoundError as error:
    raise ImportError(
        'langchain_e2rank needs LangChain: pip install "e2rank-rag[langchain]"'
    ) from error

from langchain_e2rank.embeddings import E2RankEmbeddings
from langchain_e2rank.reranker import E2RankReranker
from langchain_e2rank.retriever import E2RankRetriever
from langchain_e2rank.self_query import E2RankTranslator
from langchain_e2rank.vectorstore import E2RankVectorStore

__all__ = [
    "E2RankEmbeddings",
    "E2RankReranker",
    "E2RankRetriever",
    "E2RankTranslator",
    "E2RankVectorStore",
]
