"""What a model folder says of itself in `e2rank.json`: prompts, lengths, how a list is read."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

from e2rank_rag.feedback import Feedback
from e2rank_rag.prompts import PairPrompt, Prompts

Pooling = Literal["last", "cls", "mean"]

System = Literal["e2rank", "resrank", "rankt5"]
"""What a model folder holds, as `e2rank.json` says: an encoder, an encoder with a reranker that
reads its vectors, or a ranker of pairs."""

Structure = Literal["encoder-decoder", "encoder-only"]

PairPooling = Literal["first", "mean"]

SCORE_TOKEN = "<extra_id_10>"
"""A token that T5 never used: RankT5 reads the score off it (arXiv 2210.10634, section 4.1)."""

ADAPTER_FOLDER = "listwise_adapter"
ENCODER_FOLDER = "encoder"
RERANKER_FOLDER = "reranker"


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


class ResidualLayout(BaseModel):
    """How a ResRank reads a list. The paper's abstract leaves these open; docs/resrank.md compares.

    query_position: of the query's text, `before` or `after` the passages. Passages of a causal
        model see a query that stands before them only.
    query_vector: which hidden state stands for the query: the `span` of its text, pooled as the
        backbone pools, or the `end` of the whole input, which in a causal model has seen the list.
    passage_positions: one position `shared` by all passages, so that their order says nothing, or
        one each, as they are `ranked`.
    passage_attention: passages see `all` others, or beside the text only their `own` place.
    residual: `gated` adds the hidden state times a learned number, `sum` adds it as it is, `none`
        takes the hidden state alone.
    query_residual: what the query's vector begins from: the encoder's vector of the `query`; that
        with `feedback`, the mean of the passages' vectors, weighted by how well they match, in
        learned proportions; or `none`.
    unit_hidden: whether hidden states are scaled to unit length before they are added.
    projection: `linear` maps vectors into the reranker and states back, at first by the identity
        where widths are equal; `none` needs equal widths.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    query_position: Literal["before", "after"] = "before"
    query_vector: Literal["span", "end"] = "span"
    passage_positions: Literal["shared", "ranked"] = "shared"
    passage_attention: Literal["all", "own"] = "all"
    residual: Literal["gated", "sum", "none"] = "gated"
    query_residual: Literal["query", "feedback", "none"] = "feedback"
    unit_hidden: bool = True
    projection: Literal["linear", "none"] = "linear"


class EncoderOf(BaseModel):
    """The encoder whose vectors a ResRank reads.

    base: a hub id, "minilm", a folder as seen from that of the recipe, or "." for `ENCODER_FOLDER`
        in it.
    digest: of its weights (`checkpoint.weights_digest`).
    recipe: how it made the vectors; None: as the folder of `base` says.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    base: str
    digest: str
    recipe: Recipe | None = None


class ResRankRecipe(BaseModel):
    """A ResRank: the encoder, and how its reranker reads a list. The reranker's own recipe, prompts
    and lengths, is in the folder `RERANKER_FOLDER`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    system: Literal["resrank"] = "resrank"
    encoder: EncoderOf
    layout: ResidualLayout = ResidualLayout()


class RankT5Recipe(BaseModel):
    """Everything that turns a query and a document into a score, but for the weights.

    structure: of an encoder-decoder, the score is the logit of `score_token` in the first step of
        the decoder; of an encoder alone, what a dense layer makes of one vector of the pair.
    input: "text" is one string, by `prompt`; "segments" are query and document as the tokenizer
        joins a pair, for BERT and its kind, whose classifier has a pooling of its own.
    pooling: of an encoder-only T5: the first token, or the mean of all.
    max_tokens: of a pair, special tokens included; documents are cut there.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    system: Literal["rankt5"] = "rankt5"
    structure: Structure
    input: Literal["text", "segments"]
    prompt: PairPrompt = PairPrompt()
    score_token: str | None = None
    pooling: PairPooling | None = None
    max_tokens: int = Field(default=512, ge=16)

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, stated: Any) -> Any:
        if not isinstance(stated, dict):
            return stated
        filled = dict(stated)
        if filled.get("structure") == "encoder-decoder" and filled.get("score_token") is None:
            filled["score_token"] = SCORE_TOKEN
        pooled = filled.get("structure") == "encoder-only" and filled.get("input") == "text"
        if pooled and filled.get("pooling") is None:
            filled["pooling"] = "first"
        return filled

    @model_validator(mode="after")
    def _consistent(self) -> RankT5Recipe:
        decoder = self.structure == "encoder-decoder"
        if decoder and self.input == "segments":
            raise ValueError('an encoder-decoder reads a pair as "text", not as "segments"')
        if self.score_token is not None and not decoder:
            raise ValueError("score_token is of an encoder-decoder; leave it out")
        if self.pooling is not None and (decoder or self.input == "segments"):
            raise ValueError("pooling is of an encoder-only T5; leave it out")
        return self


def system_of(
    model: str | Path,
    system: System | None = None,
    *,
    revision: str | None = None,
    local_files_only: bool = False,
) -> System:
    """What a model folder or hub id holds: what its `e2rank.json` says, else what the caller says,
    else an E2Rank encoder.

    Raises CheckpointError where there is no such model, ValueError for a `system` that there is
    not, or that is not what the file says.
    """
    # Imported here: whoever only reads recipes needs no torch.
    from e2rank_rag.models.checkpoint import read_system
    from e2rank_rag.models.names import resolve_folder

    if system is not None and system not in get_args(System):
        raise ValueError(f"system must be one of {list(get_args(System))}, got {system!r}")
    folder = resolve_folder(model, revision=revision, local_files_only=local_files_only)
    found = read_system(folder)
    if system is not None and found not in (None, system):
        raise ValueError(f"{model} says that it is {found!r}, not {system!r}: leave system out")
    return found or system or "e2rank"
