"""A query about ferries with five texts, their vectors, and settings of a reranker for them."""

from __future__ import annotations

from e2rank_rag.evidence import Evidence
from e2rank_rag.feedback import Feedback

QUERY = "river ferry"
VECTORS = {
    QUERY: [1.0, 0.2, 0.0],
    f"listwise {QUERY}": [0.9, 0.3, 0.3],
    "a bridge of stone": [0.9, 0.1, 0.1],
    "the ferry crosses the river": [0.7, 0.4, 0.2],
    "a ferry with an engine": [0.5, 0.8, 0.1],
    "the engine of a tram": [0.3, 0.6, 0.5],
    "bread rises": [0.1, 0.1, 0.9],
}
TEXTS = [text for text in VECTORS if QUERY not in text]
EVIDENCE = Evidence(words=0.4, expansion=0.2, expansion_documents=3, expansion_terms=3)
OWN = Feedback(lexical_weight=1.0, temperature=0.5, weight=0.4)
