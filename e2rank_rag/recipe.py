"""What a model folder says of itself in `e2rank.json`: prompts, lengths, how a list is read."""

from __future__ import annotations

import hashlib
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from e2rank_rag.feedback import Feedback
from e2rank_rag.prompts import Prompts

Pooling = Literal["last", "cls", "mean"]


class ListwiseBudget(BaseModel):
    """What one listwise prompt may hold.

    depth: candidates shown, from the first on.
    document_tokens: limit for one candidate; long lists share what the prompt has room for.
    max_tokens: limit for the whole prompt, special tokens included.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    depth: int = Field(default=20, ge=0)
    document_tokens: int = Field(default=1024, ge=1)
    max_tokens: int = Field(default=32768, ge=16)


class AdapterOf(BaseModel):
    """The model whose document weights a listwise adapter leaves alone.

    base: a hub id, "minilm", a folder as seen from the one that holds the adapter, or "." for that
        itself.
    digest: of the base's weights (`checkpoint.weights_digest`): an adapter is worth nothing on
        others.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    base: str
    digest: str


class Recipe(BaseModel):
    """Everything that turns a text into a vector, but for the weights.

    pooling: `last` token (causal models), `cls`, or the `mean` of all tokens.
    end_token: appended after truncation (`last` pools it); None: what the tokenizer adds by itself.
    query_tokens, document_tokens: limits, special tokens included.
    truncate_dim: leading dimensions kept before scaling to unit length (Matryoshka models).
    query_weight: `a` in `a * query + (1 - a) * listwise`, the vector that reranks.
    feedback: which candidates a prompt shows, and how much their vectors count beside it; None: the
        first ones as they come, and nothing.
    adapter: of a model whose listwise prompts have LoRA weights of their own, in the folder
        `ADAPTER_FOLDER` beside the recipe; queries and documents keep those of the base.
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
        """Changes with whatever changes a document's vector; the query side is left out."""
        parts = (
            weights,
            self.pooling,
            self.end_token,
            self.prompts.document,
            self.document_tokens,
            self.truncate_dim,
        )
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]
