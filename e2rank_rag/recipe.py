"""The recipe of an E2Rank model, as its folder stores it in `e2rank.json`."""

from __future__ import annotations

import hashlib
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from e2rank_rag.feedback import Feedback
from e2rank_rag.prompts import Prompts

Pooling = Literal["last", "cls", "mean"]


class ListwiseBudget(BaseModel):
    """What one listwise prompt may hold.

    depth: how many candidates it shows, from the first on.
    document_tokens: limit for one candidate; the candidates of a long list share the room.
    max_tokens: limit for the whole prompt, special tokens included.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    depth: int = Field(default=20, ge=0)
    document_tokens: int = Field(default=1024, ge=1)
    max_tokens: int = Field(default=32768, ge=16)


class AdapterOf(BaseModel):
    """The base of a listwise adapter, which encodes queries and documents.

    base: a hub id, a shipped model, a folder relative to the adapter's, or "." for that folder
        itself.
    digest: of the base's weights (`weights_digest`). The adapter fits these weights only.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    base: str
    digest: str


class Recipe(BaseModel):
    """Everything that turns a text into a vector, except the weights.

    pooling: the `last` token (causal models), the first token (`cls`), or the `mean` of all tokens.
    end_token: appended after truncation, and pooled by `last`; None: the tokenizer's own.
    query_tokens, document_tokens: limits, special tokens included.
    truncate_dim: leading dimensions kept before scaling to unit length (Matryoshka models).
    query_weight: `a` in `a * query + (1 - a) * listwise`, the reranking vector before feedback.
    feedback: how candidates are chosen for the prompt, and how much their mean vector counts; None:
        the prompt shows the first candidates, and no vector is added.
    adapter: the base of a listwise adapter, which lies in the folder `listwise_adapter`; None: the
        model has no adapter.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    system: Literal["e2rank"] = "e2rank"
    pooling: Pooling
    end_token: str | None = None
    prompts: Prompts
    query_tokens: int = Field(default=512, ge=8)
    document_tokens: int = Field(default=1024, ge=8)
    listwise: ListwiseBudget = ListwiseBudget()
    truncate_dim: int | None = Field(default=None, ge=1)
    query_weight: float = Field(default=0.0, ge=0.0, le=1.0)
    feedback: Feedback | None = None
    adapter: AdapterOf | None = None

    def document_fingerprint(self, weights: str) -> str:
        """A hash of everything that changes a document's vector; query settings do not count.

        weights: the digest of the weights.
        """
        parts = (
            weights,
            self.pooling,
            self.end_token,
            self.prompts.document,
            self.document_tokens,
            self.truncate_dim,
        )
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]
