"""E2Rank's core, without a thread: texts to unit vectors, by transformer, tokenizer and recipe.

`encoder.Encoder` runs a `TextModel` in the thread of its device. Training measures with a
`TextModel` over the weights in training, so measuring and serving run the same code.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from e2rank_rag.models import bert
from e2rank_rag.models.core import Core, evaluating, in_its_thread, not_finite
from e2rank_rag.models.worker import Worker
from e2rank_rag.tokenization import TextTokenizer, Tokens, checked_texts
from e2rank_rag.types import Cut, Embeddings, ListwiseEncoding

logger = logging.getLogger(__name__)


def pool(hidden: Tensor, slots: Tensor) -> Tensor:
    """The float32 mean of the hidden states of each slot: [B, L, D], int [B, L] -> [B, S, D].

    S is the highest slot number; slot 0 is not pooled. Every row must fill every slot, because the
    mean of an empty slot is undefined. `TextTokenizer` guarantees it; a check here would cost a
    device synchronisation per batch.
    """
    count = int(slots.max())
    members = (
        slots[:, None, :] == torch.arange(1, count + 1, device=slots.device)[:, None]
    )  # [B, S, L]
    sums = members.to(torch.float32) @ hidden.to(torch.float32)
    return sums / members.sum(-1, keepdim=True)


def blend(queries: Tensor, listwise: Tensor, weight: float) -> Tensor:
    """`weight * queries + (1 - weight) * listwise`, scaled to unit length: [B, D] each.

    This is the reranking vector before feedback. With weight 0 it is the unchanged listwise vector.
    """
    if weight == 0.0:
        return listwise
    return F.normalize(weight * queries + (1.0 - weight) * listwise, dim=-1)


class Backbone(nn.Module):
    """A Hugging Face encoder or decoder without its head, giving unit vectors.

    truncate_dim: how many leading dimensions are kept before scaling to unit length; None: all.
    """

    def __init__(self, transformer: nn.Module, *, truncate_dim: int | None = None) -> None:
        super().__init__()
        self.transformer = transformer
        self.truncate_dim = truncate_dim

    def forward(self, input_ids: Tensor, attention_mask: Tensor, pool_slots: Tensor) -> Tensor:
        """int [B, L] three times -> float32 [B, S, D], unit length, one vector per slot."""
        if bert.fits(self.transformer):
            hidden, pool_slots = bert.states(
                self.transformer, input_ids, attention_mask, pool_slots
            )
        else:
            hidden = self.transformer(
                input_ids=input_ids, attention_mask=attention_mask
            ).last_hidden_state
        pooled = pool(hidden, pool_slots)[..., : self.truncate_dim]
        return F.normalize(pooled, dim=-1)


class RecentVectors:
    """A cache of the `size` most recently used vectors. Not thread-safe."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._vectors: dict[Hashable, Embeddings] = {}

    def get(self, key: Hashable) -> Embeddings | None:
        """The vector of this key, which becomes the most recent one; None if there is none."""
        found = self._vectors.pop(key, None)
        if found is not None:
            self._vectors[key] = found
        return found

    def put(self, key: Hashable, vector: Embeddings) -> None:
        """Keep a copy of the vector, and drop the least recently used one."""
        self._vectors[key] = vector.copy()
        if len(self._vectors) > self.size:
            del self._vectors[next(iter(self._vectors))]

    def clear(self) -> None:
        """Drop all vectors."""
        self._vectors.clear()


class TextModel(Core):
    """Queries, documents and listwise prompts to unit vectors. Satisfies `types.TextEncoder`.

    Vectors are float32 [n, dim], unit length, in input order.

    transformer: reads queries and documents.
    tokenizer: turns texts into tokens as its recipe says.
    listwise: reads listwise prompts; None: the transformer does. While an adapter is trained,
        `transformer` is the frozen base and `listwise` the model in training.
    fingerprint: see `TextEncoder.fingerprint`.
    recent: cache of query vectors, for a `transformer` that does not change.
    name, worker: see `Core`.
    """

    def __init__(
        self,
        transformer: nn.Module,
        tokenizer: TextTokenizer,
        *,
        listwise: nn.Module | None = None,
        fingerprint: str = "in training",
        name: str = "the model",
        recent: RecentVectors | None = None,
        worker: Worker | None = None,
    ) -> None:
        super().__init__(name, worker)
        self.tokenizer = tokenizer
        self.recipe = tokenizer.recipe
        self.fingerprint = fingerprint
        self.feedback = self.recipe.feedback
        self.evidence = self.recipe.evidence
        self.dim = int(self.recipe.truncate_dim or transformer.config.hidden_size)  # type: ignore[union-attr, arg-type]
        self._plain = transformer
        self._listwise = transformer if listwise is None else listwise
        self._recent = recent

    @in_its_thread
    def encode_queries(self, queries: Sequence[str], *, progress: bool | None = None) -> Embeddings:
        """Plain query vectors, float32 [n, dim]. ValueError for a query without any token."""
        tokens = self.tokenizer.queries(checked_texts(queries, "query"))
        _log_cut("queries", _cut(tokens, self.recipe.query_tokens))
        return self._queries(tokens, progress=progress)

    @in_its_thread
    def encode_documents(
        self,
        documents: Sequence[str],
        *,
        on_cut: Callable[[Cut], None] | None = None,
        progress: bool | None = None,
    ) -> Embeddings:
        """Document vectors, float32 [n, dim].

        Texts are cut at `recipe.document_tokens`.

        on_cut: called with the number of texts that were cut; None: one warning per call is logged.
        progress: show a bar; None: for long calls of an open model, on a terminal.
        """
        tokens = self.tokenizer.documents(checked_texts(documents, "document"))
        vectors = self._forward(tokens, self._plain, progress=progress)
        cut = _cut(tokens, self.recipe.document_tokens)
        if on_cut is None:
            _log_cut("documents", cut)
        elif cut.texts:
            on_cut(cut)
        return vectors

    @in_its_thread
    def encode_listwise(
        self,
        queries: Sequence[str],
        candidates: Sequence[Sequence[str]],
        *,
        depth: int | None = None,
        query_weight: float | None = None,
        query_vectors: Embeddings | None = None,
    ) -> ListwiseEncoding:
        """One vector per query, of a prompt that holds the query and its first `depth` candidates.

        This is E2Rank's pseudo-relevance-feedback query (arXiv 2510.22733, eq. 1): its cosine with
        a document's own vector is that document's score.

        depth: None takes the recipe's; 0 leaves the documents out.
        query_weight: `a` in `a * query + (1 - a) * listwise`, scaled to unit length, from 0 to 1;
            None takes the recipe's. With 1 no prompt is made, and `usage` is empty.
        query_vectors: [n, dim], the vectors of these queries from `encode_queries`; None: the
            queries are encoded here if the weight needs them.
        """
        texts = checked_texts(queries, "query")
        if len(candidates) != len(texts):
            raise ValueError(f"{len(texts)} queries came with {len(candidates)} candidate lists")
        depth = self.recipe.listwise.depth if depth is None else depth
        if depth < 0:
            raise ValueError(f"depth must be 0 or more, got {depth}")
        weight = self.recipe.query_weight if query_weight is None else query_weight
        if not 0.0 <= weight <= 1.0:
            raise ValueError(f"query_weight must be between 0 and 1, got {weight}")
        if query_vectors is not None and np.shape(query_vectors) != (len(texts), self.dim):
            raise ValueError(
                f"query_vectors has the shape {np.shape(query_vectors)}, and {len(texts)} queries "
                f"have vectors of shape {(len(texts), self.dim)}"
            )
        lists = [checked_texts(documents[:depth], "candidate") for documents in candidates]
        plain = query_vectors
        if plain is None and weight > 0.0:
            plain = self._queries(self.tokenizer.queries(texts))
        if plain is not None and weight == 1.0:
            return ListwiseEncoding(np.array(plain, dtype=np.float32), ())
        tokens, usage = self.tokenizer.listwise(texts, lists, depth)
        prompts = vectors = self._forward(tokens, self._listwise)
        if plain is not None and weight > 0.0:
            asked = torch.from_numpy(np.asarray(plain, dtype=np.float32))
            vectors = blend(asked, torch.from_numpy(prompts), weight).numpy()
        return ListwiseEncoding(vectors, tuple(usage), prompts, weight)

    @in_its_thread
    def encode_verbatim(self, prompts: Sequence[str]) -> Embeddings:
        """Vectors of finished prompts, in which special tokens are recognised, float32 [n, dim].

        For checks against published vectors.
        """
        tokens = [self.tokenizer.verbatim(prompt) for prompt in prompts]
        return self._forward(tokens, self._listwise)

    def _queries(self, tokens: Sequence[Tokens], *, progress: bool | None = None) -> Embeddings:
        """Like `_forward`, but cached queries need no forward pass."""
        if self._recent is None:
            return self._forward(tokens, self._plain, progress=progress)
        keys = [(self.dim, tuple(row.ids), tuple(row.slots)) for row in tokens]
        vectors = np.empty((len(tokens), self.dim), dtype=np.float32)
        fresh = []
        for row, key in enumerate(keys):
            known = self._recent.get(key)
            if known is None:
                fresh.append(row)
            else:
                vectors[row] = known
        asked = [tokens[row] for row in fresh]
        vectors[fresh] = self._forward(asked, self._plain, progress=progress)
        for row in fresh:
            self._recent.put(keys[row], vectors[row])
        return vectors

    def _forward(
        self, tokens: Sequence[Tokens], transformer: nn.Module, *, progress: bool | None = None
    ) -> Embeddings:
        """Vectors of tokenised texts, in batches of similar length."""
        backbone = Backbone(transformer, truncate_dim=self.recipe.truncate_dim)

        def compute(_: list[int], batch: dict[str, Tensor]) -> Embeddings:
            with evaluating(transformer):
                found: Embeddings = backbone(**batch)[:, 0].float().cpu().numpy()
                return found

        vectors = np.empty((len(tokens), self.dim), dtype=np.float32)
        collate = self.tokenizer.collate
        computed = self._computed(tokens, collate, compute, transformer, progress=progress)
        for rows, found in computed:
            vectors[rows] = found
        if not (np.linalg.norm(vectors, axis=1) > 0.5).all():
            raise not_finite(
                f"{self.name} gave vectors",
                next(transformer.parameters()).dtype,
                "not finite or zero",
            )
        return vectors


def _cut(tokens: Sequence[Tokens], limit: int) -> Cut:
    return Cut(sum(row.cut for row in tokens), len(tokens), limit)


def _log_cut(kind: str, cut: Cut) -> None:
    if cut.texts:
        logger.warning(
            "%d of %d %s were longer than %d tokens and were cut there",
            cut.texts,
            cut.of,
            kind,
            cut.limit,
        )
