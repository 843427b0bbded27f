"""The shipped model's rankings on a small real slice: reranking has to beat plain cosine.

Queries are spread evenly over SciFact's train split, among those whose relevant documents have at
most 800 characters. A query's candidates are its relevant documents and the 30 nearest by BM25
among all abstracts of that length. The shipped adapter was trained on this split: this is a test
against regressions and says nothing about how the model does on other queries.
"""

from __future__ import annotations

import bm25s
import numpy as np

from e2rank_rag import Encoder, ListwiseReranker
from e2rank_rag.data import shipped_collection
from e2rank_rag.evaluation.metrics import evaluate
from e2rank_rag.evaluation.runs import run_from_rankings
from e2rank_rag.models.shipped import DEFAULT_MODEL
from e2rank_rag.rerankers.ranking import rank
from e2rank_rag.types import Hit

QUERIES, LONGEST, NEAREST, MAX_LENGTH = 25, 800, 30, 48

PLAIN, GAIN = 0.763, 0.042
"""nDCG@10 of plain cosine on this slice, and what reranking added to it when this was written."""


def slice_of_scifact():
    """query -> relevant document ids, query -> candidates, both by the text of the query."""
    scifact = shipped_collection("scifact")
    texts, judged = scifact.queries("train"), scifact.qrels("train")
    short = [document for document in scifact.documents() if len(document.text) <= LONGEST]
    by_id = {document.id: document for document in short}
    fitting = [id for id in texts if judged[id].keys() <= by_id.keys()]
    ids = fitting[:: len(fitting) // QUERIES][:QUERIES]
    index = bm25s.BM25()
    corpus = bm25s.tokenize([document.text for document in short], show_progress=False)
    index.index(corpus, show_progress=False)
    candidates = {}
    for id in ids:
        (words,) = bm25s.tokenize([texts[id]], show_progress=False, return_ids=False)
        best = np.argsort(-index.get_scores(words), kind="stable")[:NEAREST]
        nearest = {short[place].id: short[place] for place in best}
        candidates[texts[id]] = [*(nearest | {id: by_id[id] for id in judged[id]}).values()]
    return {texts[id]: judged[id] for id in ids}, candidates


def ndcg(qrels, rankings):
    run = run_from_rankings(dict(zip(qrels, rankings, strict=True)))
    return evaluate(run, qrels, ["nDCG@10"])["nDCG@10"]


def test_reranking_with_the_shipped_model_gains_half_of_what_it_did_or_more():
    qrels, candidates = slice_of_scifact()
    queries = list(qrels)
    distinct = {
        document.id: document for documents in candidates.values() for document in documents
    }
    with Encoder.from_pretrained(DEFAULT_MODEL, device="cpu", max_length=MAX_LENGTH) as encoder:
        encoded = encoder.encode_documents([document.text for document in distinct.values()])
        vectors = dict(zip(distinct, encoded, strict=True))
        retrieved = []
        for query, vector in zip(queries, encoder.encode_queries(queries), strict=True):
            hits = [Hit(found, 0.0, vectors[found.id]) for found in candidates[query]]
            retrieved.append(rank(hits, [float(vector @ vectors[hit.document.id]) for hit in hits]))
        reranker = ListwiseReranker(encoder, stored_vectors="trust")
        reranked = reranker.rerank_batch(queries, retrieved)
    plain, listwise = ndcg(qrels, retrieved), ndcg(qrels, reranked)
    assert plain >= PLAIN - 0.02
    assert listwise - plain >= GAIN / 2
