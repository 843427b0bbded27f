"""Recipes: what the folder of each system stores in `e2rank.json`. They load no torch."""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainSerializer, model_validator

from e2rank_rag.evidence import Evidence
from e2rank_rag.feedback import Feedback
from e2rank_rag.prompts import PairPrompt, Prompts, Record

Pooling = Literal["last", "cls", "mean"]

Structure = Literal["encoder-decoder", "encoder-only"]

PairPooling = Annotated[
    Literal["cls", "mean"],
    BeforeValidator(lambda value: "cls" if value == "first" else value),
    PlainSerializer(lambda value: "first" if value == "cls" else value),
]
"""Which tokens of a pair are pooled. Files write "first" for "cls"."""

SCORE_TOKEN = "<extra_id_10>"
"""A token unused in T5's training; RankT5's score is its logit (arXiv 2210.10634, section 4.1)."""


class ListwiseBudget(Record):
    """The limits of one listwise prompt.

    depth: how many candidates it shows, from the first on.
    document_tokens: limit for one candidate; the candidates of a long list share the room.
    max_tokens: limit for the whole prompt, special tokens included.
    """

    depth: int = Field(default=20, ge=0)
    document_tokens: int = Field(default=1024, ge=1)
    max_tokens: int = Field(default=32768, ge=16)


class AdapterOf(Record):
    """The base of a listwise adapter, which encodes queries and documents.

    base: a hub id, a shipped model, a folder relative to the adapter's, or "." for the adapter's
        folder itself.
    digest: the digest of the base's weights (`weights_digest`); the adapter fits no others.
    """

    base: str
    digest: str


class Recipe(Record):
    """Everything that turns a text into a vector, except the weights.

    pooling: the `last` token (causal models), the first token (`cls`), or the `mean` of all tokens.
    end_token: appended after truncation, and pooled by `last`; None: the tokenizer's own.
    query_tokens, document_tokens: limits, special tokens included.
    truncate_dim: leading dimensions kept before scaling to unit length (Matryoshka models).
    query_weight: `a` in `a * query + (1 - a) * listwise`, the reranking vector before feedback.
    feedback: how candidates are chosen for the prompt, and how much their mean vector counts; None:
        the prompt shows the first candidates, and no vector is added.
    evidence: what the words of the candidates add to their cosines; None: the score is the cosine.
    adapter: the base of the listwise adapter, which is in the folder `listwise_adapter`; None: the
        model has no adapter.
    """

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
    evidence: Evidence | None = None
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


class ResidualLayout(Record):
    """The input format of a ResRank, and how its hidden states are used.

    The paper's abstract leaves these choices open; docs/resrank.md compares them.

    query_position: whether the query's text stands `before` or `after` the passages. In a causal
        model passages see only a query that stands before them.
    query_vector: which hidden state is the query's: the `span` of its text, pooled like the
        backbone's texts, or the `end` of the input, where a causal model has seen the whole list.
    passage_positions: `shared`: all passages have one position, so their order does not matter;
        `ranked`: each passage has its own.
    passage_attention: a passage attends to the query's text and to `all` passages, or only to its
        `own` place.
    residual: `gated` adds the hidden state times a learned number, `sum` adds the hidden state, and
        `none` takes the hidden state alone.
    query_residual: the vector to which the query's hidden state is added. `query`: the encoder's
        vector of the query. `feedback`: that vector plus the mean of the passages' vectors,
        weighted by how well they match, in learned proportions. `none`: no vector.
    unit_hidden: whether hidden states are scaled to unit length before they are added.
    projection: `linear` maps vectors to the reranker's width and hidden states back, initially with
        the identity if the widths are equal; `none` needs equal widths.
    """

    query_position: Literal["before", "after"] = "before"
    query_vector: Literal["span", "end"] = "span"
    passage_positions: Literal["shared", "ranked"] = "shared"
    passage_attention: Literal["all", "own"] = "all"
    residual: Literal["gated", "sum", "none"] = "gated"
    query_residual: Literal["query", "feedback", "none"] = "feedback"
    unit_hidden: bool = True
    projection: Literal["linear", "none"] = "linear"


class EncoderOf(Record):
    """The encoder whose vectors a ResRank reads.

    base: a hub id, a shipped model, a folder relative to the recipe's folder, or "." for the folder
        `encoder` in it.
    digest: the digest of the encoder's weights (`weights_digest`).
    recipe: the recipe of the vectors; None: the one in the folder of `base`.
    """

    base: str
    digest: str
    recipe: Recipe | None = None


class ResRankRecipe(Record):
    """The encoder of a ResRank, and how its reranker reads a list.

    The reranker's own recipe, with prompts and limits, is in the folder `reranker`.
    """

    format: Literal[1] = 1
    system: Literal["resrank"] = "resrank"
    encoder: EncoderOf
    layout: ResidualLayout = ResidualLayout()


class CrossEncoderRecipe(Record):
    """Everything that turns a query and a document into a score, except the weights.

    structure: an encoder-decoder's score is the logit of `score_token` in the first step of the
        decoder; an encoder's score comes from a dense layer over one vector of the pair.
    input: "text" is one string from `prompt`; "segments" is the pair as the tokenizer joins it, for
        models such as BERT, whose classifier pools by itself.
    pooling: for an encoder-only T5: the first token ("cls"), or the mean of all tokens.
    max_tokens: limit for a pair, special tokens included; documents are cut there.
    """

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
    def _defaults(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        filled = dict(values)
        if filled.get("structure") == "encoder-decoder" and filled.get("score_token") is None:
            filled["score_token"] = SCORE_TOKEN
        pooled = filled.get("structure") == "encoder-only" and filled.get("input") == "text"
        if pooled and filled.get("pooling") is None:
            filled["pooling"] = "cls"
        return filled

    @model_validator(mode="after")
    def _consistent(self) -> CrossEncoderRecipe:
        decoder = self.structure == "encoder-decoder"
        if decoder and self.input == "segments":
            raise ValueError('an encoder-decoder reads a pair as "text", not as "segments"')
        if self.score_token is not None and not decoder:
            raise ValueError("score_token is for an encoder-decoder; leave it out")
        if self.pooling is not None and (decoder or self.input == "segments"):
            raise ValueError("pooling is for an encoder-only T5; leave it out")
        return self
