"""The model in training, seen as an encoder: dev sets are measured by the code that serves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from e2rank_rag.models.e2rank import Backbone
from e2rank_rag.models.encoder import Encoder
from e2rank_rag.recipe import Recipe
from e2rank_rag.tokenization import TextTokenizer, Tokens, batches_by_length, collate
from e2rank_rag.types import Cut, Embeddings, ListwiseEncoding, T

BATCH_TOKENS = 8192


class LiveEncoder:
    """A `TextEncoder` of weights that change; for one thread, between training steps.

    base: encodes queries and documents in adapter mode; in joint mode None: the model itself does.
    """

    fingerprint = "in training"

    def __init__(
        self,
        model: nn.Module,
        tokenizer: TextTokenizer,
        recipe: Recipe,
        *,
        pad_id: int,
        base: Encoder | None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.recipe = recipe
        self.pad_id = pad_id
        self.base = base
        self.feedback = recipe.feedback
        self.dim = int(recipe.truncate_dim or model.config.hidden_size)  # type: ignore[union-attr, arg-type]

    def encode_queries(self, queries: Sequence[str]) -> Embeddings:
        if self.base is not None:
            return self.base.encode_queries(queries)
        return self._forward(self.tokenizer.queries(queries))

    def encode_documents(
        self, documents: Sequence[str], *, on_cut: Callable[[Cut], None] | None = None
    ) -> Embeddings:
        if self.base is not None:
            return self.base.encode_documents(documents, on_cut=on_cut)
        return self._forward(self.tokenizer.documents(documents))

    def encode_listwise(
        self,
        queries: Sequence[str],
        candidates: Sequence[Sequence[str]],
        *,
        depth: int | None = None,
        query_weight: float | None = None,
        query_vectors: Embeddings | None = None,
    ) -> ListwiseEncoding:
        depth = self.recipe.listwise.depth if depth is None else depth
        weight = self.recipe.query_weight if query_weight is None else query_weight
        tokens, usage = self.tokenizer.listwise(queries, candidates, depth)
        vectors = self._forward(tokens)
        if weight > 0.0:
            if query_vectors is None:
                query_vectors = self.encode_queries(queries)
            vectors = weight * query_vectors + (1.0 - weight) * vectors
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return ListwiseEncoding(vectors.astype(np.float32), tuple(usage))

    async def run_async(self, call: Callable[[], T]) -> T:
        return call()

    def close(self) -> None:
        """Nothing: the model is the trainer's."""

    def _forward(self, tokens: Sequence[Tokens]) -> Embeddings:
        device = next(self.model.parameters()).device
        backbone = Backbone(self.model, truncate_dim=self.recipe.truncate_dim)
        vectors = np.empty((len(tokens), self.dim), dtype=np.float32)
        with evaluating(self.model), torch.no_grad():
            for rows in batches_by_length([len(row.ids) for row in tokens], BATCH_TOKENS):
                batch = collate([tokens[row] for row in rows], pad_id=self.pad_id)
                output = backbone(**{name: part.to(device) for name, part in batch.items()})
                vectors[rows] = output[:, 0].float().cpu().numpy()
        return vectors


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Without dropout; the model goes on as it was."""
    was = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was)
