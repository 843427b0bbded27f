"""Mined lists hold what a hybrid search in Qdrant retrieves."""

from __future__ import annotations

import math
import random
from collections import Counter

import numpy as np
import pytest
from qdrant_client import QdrantClient, models
from qdrant_client.hybrid.fusion import reciprocal_rank_fusion

from e2rank_rag.training.word_index import WordIndex, fused
from e2rank_rag.words import Bm25

WORDS = ["ferry", "bridge", "bread", "prime", "glacier", "router", "salt", "harbour"]


def texts_of_chance(count, seed):
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(1, 30))) for _ in range(count)]


def sparse(vector):
    return models.SparseVector(indices=list(vector.indices), values=list(vector.values))


def test_scores_are_bm25_with_qdrants_idf():
    texts = texts_of_chance(40, seed=0)
    index = WordIndex.of(Bm25(), texts)
    for query in ("ferry to the harbour", "bread bread and salt", "glacier"):
        asked = {word for word in query.split() if word in WORDS}
        scores = []
        for text in texts:
            counts = Counter(text.split())
            length = sum(counts.values())
            score = 0.0
            for word in asked:
                holding = sum(word in other.split() for other in texts)
                idf = math.log((len(texts) - holding + 0.5) / (holding + 0.5) + 1)
                tf = counts[word]
                score += idf * tf * 2.2 / (tf + 1.2 * (0.25 + 0.75 * length / 256))
            scores.append(score)
        (found,) = index.best([query], 10)
        assert len(found) == 10
        best = sorted(scores, reverse=True)[:10]
        assert [scores[row] for row in found] == pytest.approx(best, rel=1e-5)


def test_a_document_without_a_word_of_the_query_is_not_found():
    index = WordIndex.of(Bm25(), ["a ferry", "bread and salt", "the ferries", "---"])
    assert index.best(["ferry", "unheard", "the"], 9) == [[0, 2], [], []]


def test_no_document_has_a_word():
    assert WordIndex.of(Bm25(), ["the", "--"]).best(["ferry"], 3) == [[]]


def test_fusion_is_qdrants():
    draw = random.Random(1)
    for _ in range(20):
        dense, words = (draw.sample(range(30), 12) for _ in range(2))
        points = [
            [models.ScoredPoint(id=row, version=0, score=0.0) for row in ranking]
            for ranking in (dense, words)
        ]
        expected = [point.id for point in reciprocal_rank_fusion(points, limit=9)]
        assert fused(dense, words, 9) == expected


def test_candidates_are_those_of_a_hybrid_search_in_qdrant():
    texts, bm25 = texts_of_chance(60, seed=2), Bm25()
    draw = np.random.default_rng(3)
    vectors = draw.normal(size=(60, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    client = QdrantClient(":memory:")
    client.create_collection(
        "texts",
        {"dense": models.VectorParams(size=8, distance=models.Distance.DOT)},
        {"bm25": models.SparseVectorParams(modifier=models.Modifier.IDF)},
    )
    client.upsert(
        "texts",
        [
            models.PointStruct(id=row, vector={"dense": vectors[row].tolist(), "bm25": vector})
            for row, vector in enumerate(map(sparse, bm25.documents(texts)))
        ],
    )
    index = WordIndex.of(bm25, texts)
    for query in ("a ferry and a bridge", "salt", "harbour glacier router"):
        vector = draw.normal(size=8).astype(np.float32)
        response = client.query_points(
            "texts",
            prefetch=[
                models.Prefetch(query=vector.tolist(), using="dense", limit=20),
                models.Prefetch(query=sparse(bm25.query(query)), using="bm25", limit=20),
            ],
            query=models.FusionQuery(fusion=models.Fusion.RRF),
            limit=20,
        )
        dense = np.argsort(-(vectors @ vector), kind="stable")[:20].tolist()
        (words,) = index.best([query], 20)
        ours = fused(dense, words, 20)
        assert set(ours[:15]) == {point.id for point in response.points[:15]}
    client.close()
