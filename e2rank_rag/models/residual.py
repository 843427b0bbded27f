"""ResRank in tensors: a list of vectors and a query's text in, vectors with a residual out.

The facts are those of the abstract of ResRank: each passage is one embedding and one token of the
reranker, hidden states are added to the embeddings, scores are cosines. What it leaves open is a
field of `recipe.ResidualLayout` each.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise, repeat
from pathlib import Path
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from e2rank_rag.errors import CheckpointError
from e2rank_rag.models.config import first_position
from e2rank_rag.models.e2rank import pool
from e2rank_rag.models.files import inside
from e2rank_rag.models.folders import RECIPE_FILE, find_base, read_recipe_file, read_system
from e2rank_rag.recipe import Recipe
from e2rank_rag.tokenization import Tokens

ENCODER_FOLDER = "encoder"
RERANKER_FOLDER = "reranker"


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


def encoder_folder(
    folder: Path, *, local_files_only: bool = False
) -> tuple[Path, EncoderOf | None]:
    """Where the encoder is: the folder itself, or elsewhere, as a ResRank says.

    Raises CheckpointError for a folder that has no encoder.
    """
    system = read_system(folder)
    if system == "rankt5":
        raise CheckpointError(
            f"{folder} holds a cross-encoder, which scores pairs and has no vectors: name the "
            "encoder of the index here, and this model as the reranker"
        )
    if system != "resrank":
        return folder, None
    encoder = read_recipe_file(folder / RECIPE_FILE, ResRankRecipe).encoder
    if encoder.base == ".":
        return inside(folder, ENCODER_FOLDER), encoder
    return find_base(encoder.base, folder, local_files_only=local_files_only), encoder


def read_resrank_recipe(folder: Path) -> ResRankRecipe:
    """What `e2rank.json` says; CheckpointError when the folder holds no ResRank."""
    system = read_system(folder)
    if system != "resrank":
        found = f"says that it is {system!r}" if system else f"has no {RECIPE_FILE}"
        raise CheckpointError(f"{folder} holds no ResRank: it {found}")
    return read_recipe_file(folder / RECIPE_FILE, ResRankRecipe)


class ListTokens(NamedTuple):
    """A query's tokens and one place per passage. `slots`: 1 the query, 2, 3, ... the passages.

    cut: whether the query was longer.
    """

    ids: list[int]
    positions: list[int]
    slots: list[int]
    passages: list[bool]
    cut: bool


def list_tokens(
    query: Tokens, count: int, layout: ResidualLayout, *, closing: Sequence[int]
) -> ListTokens:
    """The input for a query over `count` passages.

    closing: special tokens behind the passages, where the last of them stands for the query.
    """
    at_end = layout.query_vector == "end"
    last = len(query.ids) - 1
    spans = [0] * last + [1] if at_end else query.slots
    passages = [(0, slot, True) for slot in range(2, count + 2)]
    if layout.query_position == "after":
        text = zip(query.ids, spans, repeat(False))
        tokens = [*passages, *text]
    elif at_end:
        end = zip(closing, [0] * (len(closing) - 1) + [1], repeat(False))
        tokens = [*((id, 0, False) for id in query.ids), *passages, *end]
    else:
        tokens = [*zip(query.ids, spans, repeat(False)), *passages]
    shared = layout.passage_positions == "shared"
    positions = [0]
    for (*_, before), (*_, here) in pairwise(tokens):
        positions.append(positions[-1] + (0 if shared and before and here else 1))
    ids, slots, places = ([token[i] for token in tokens] for i in range(3))
    return ListTokens(ids, positions, slots, [bool(place) for place in places], query.cut)


def collate_lists(batch: Sequence[ListTokens], *, pad_id: int) -> dict[str, Tensor]:
    """Tensors [B, L] of lists with K passages at most: ids, mask, positions, slots, passages.

    A shorter list gets places for the passages it lacks, which nothing attends to, so that every
    row has K of them and every slot is filled.
    """
    most = max(sum(row.passages) for row in batch)
    lacking = [range(sum(row.passages) + 2, most + 2) for row in batch]
    longest = max(len(row.ids) + len(more) for row, more in zip(batch, lacking, strict=True))
    shape = (len(batch), longest)
    tensors = {
        "input_ids": torch.full(shape, pad_id, dtype=torch.long),
        **{
            name: torch.zeros(shape, dtype=torch.long)
            for name in ("attention_mask", "position_ids", "pool_slots")
        },
        "passage_places": torch.zeros(shape, dtype=torch.bool),
    }
    for number, (row, more) in enumerate(zip(batch, lacking, strict=True)):
        length, end = len(row.ids), len(row.ids) + len(more)
        tensors["input_ids"][number, :length] = torch.tensor(row.ids)
        tensors["attention_mask"][number, :length] = 1
        tensors["position_ids"][number, :length] = torch.tensor(row.positions)
        tensors["pool_slots"][number, :end] = torch.tensor([*row.slots, *more])
        tensors["passage_places"][number, :end] = torch.tensor([*row.passages, *[True] * len(more)])
    return tensors


class ResidualHead(nn.Module):
    """What lies between the vectors of an encoder and a reranker: a scale, gates, projections.

    dim, width: of the encoder's vectors and the reranker's hidden states.
    scale: length that a vector has as an input embedding; that of the backbone's own tokens.
    gates: what hidden states of the query and of passages are multiplied with, to begin with.
    feedback: weight of the passages' mean, and sharpness of the softmax over their standardised
        cosines (`feedback.Feedback`: one over its temperature), to begin with.
    """

    def __init__(
        self,
        dim: int,
        width: int,
        layout: ResidualLayout,
        *,
        scale: float = 1.0,
        gates: tuple[float, float] = (1.0, 1.0),
        feedback: tuple[float, float] = (0.5, 2.5),
    ) -> None:
        super().__init__()
        if layout.projection == "none" and dim != width:
            raise ValueError(
                f"the encoder's vectors have {dim} dimensions, the reranker's states {width}: "
                'set layout.projection to "linear"'
            )
        self.layout = layout
        self.scale = nn.Parameter(torch.tensor(scale))
        self.gates = nn.Parameter(torch.tensor(gates), requires_grad=layout.residual == "gated")
        if layout.query_residual == "feedback" and layout.residual != "none":
            self.feedback = nn.Parameter(torch.tensor(feedback))
        self.inward: nn.Module = nn.Identity()
        self.outward: nn.Module = nn.Identity()
        if layout.projection == "linear":
            self.inward, self.outward = nn.Linear(dim, width), nn.Linear(width, dim)
            for linear in (self.inward, self.outward):
                nn.init.eye_(linear.weight) if dim == width else nn.init.orthogonal_(linear.weight)
                nn.init.zeros_(linear.bias)

    def inputs(self, passages: Tensor) -> Tensor:
        """[..., D] -> [..., W], as input embeddings."""
        embeddings: Tensor = self.scale * self.inward(passages)
        return embeddings

    def add(
        self, asked: Tensor, passages: Tensor, states: Tensor, listed: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Vectors [B, D] and [B, K, D], unit length; states [B, K + 1, W], the query's first.

        listed: bool [B, K], which passages are there.
        """
        states = self.outward(states)
        if self.layout.unit_hidden:
            states = F.normalize(states, dim=-1)
        query, contextual = states[:, 0], states[:, 1:]
        if self.layout.residual == "gated":
            query, contextual = self.gates[0] * query, self.gates[1] * contextual
        if self.layout.residual != "none":
            query = query + self._begin(asked, passages, listed)
            contextual = contextual + passages
        return F.normalize(query, dim=-1), F.normalize(contextual, dim=-1)

    def _begin(self, asked: Tensor, passages: Tensor, listed: Tensor) -> Tensor | float:
        match self.layout.query_residual:
            case "none":
                return 0.0
            case "query":
                return asked
        weight, sharpness = self.feedback
        cosines = torch.einsum("bkd,bd->bk", passages, asked)
        evidence = sharpness * standardised(cosines, listed)
        shares = evidence.masked_fill(~listed, -torch.inf).softmax(-1)
        begin: Tensor = asked + weight * torch.einsum("bk,bkd->bd", shares, passages)
        return begin


class ListBackbone(nn.Module):
    """The reranker of a ResRank: a transformer without its head, and a `ResidualHead`."""

    def __init__(self, transformer: nn.Module, head: ResidualHead) -> None:
        super().__init__()
        self.transformer = transformer
        self.head = head
        self.causal = any(getattr(each, "is_causal", False) for each in transformer.modules())
        self.first_position = first_position(transformer.config)  # type: ignore[arg-type]

    def forward(
        self,
        asked: Tensor,
        passages: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        pool_slots: Tensor,
        passage_places: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """The vectors that rank: [B, D] of the queries and [B, K, D] of the passages, unit length.

        asked: [B, D], passages: [B, K, D], of the encoder; the rest as `collate_lists` makes it.
        """
        transformer, head = self.transformer, self.head
        embeddings = transformer.get_input_embeddings()(input_ids)  # type: ignore[operator]
        inputs = head.inputs(passages).to(embeddings.dtype)
        # Row by row and in order, which is how the places are numbered.
        embeddings = embeddings.masked_scatter(passage_places[..., None], inputs)
        listed = attention_mask[passage_places].view(passages.shape[:2]).bool()
        if head.layout.passage_attention == "own":
            attention_mask = self._own_mask(attention_mask, passage_places, embeddings.dtype)
        options = {}
        if getattr(transformer.config, "type_vocab_size", 0) > 1:
            options["token_type_ids"] = passage_places.long()
        hidden = transformer(
            inputs_embeds=embeddings,
            attention_mask=attention_mask,
            position_ids=position_ids + self.first_position,
            **options,
        ).last_hidden_state
        return head.add(asked, passages, pool(hidden, pool_slots), listed)

    def _own_mask(self, attention_mask: Tensor, passages: Tensor, dtype: torch.dtype) -> Tensor:
        """[B, 1, L, L], to be added to the logits: 0 where a row may look."""
        length = attention_mask.shape[1]
        other = passages[:, :, None] & passages[:, None, :]
        other &= ~torch.eye(length, dtype=torch.bool, device=passages.device)
        seen = attention_mask[:, None, :].bool() & ~other
        if self.causal:
            seen = seen.tril()
        mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
        return mask.masked_fill(~seen, torch.finfo(dtype).min)[:, None]


def standardised(scores: Tensor, listed: Tensor) -> Tensor:
    """[B, K]: mean 0 and deviation 1 over what is listed; all 0 where that is all the same."""
    count = listed.sum(-1, keepdim=True).clamp(min=1)
    mean = scores.where(listed, 0.0).sum(-1, keepdim=True) / count
    apart = (scores - mean).where(listed, 0.0)
    variance = apart.square().sum(-1, keepdim=True) / count
    return apart / variance.clamp(min=1e-12).sqrt()


def token_length(transformer: nn.Module) -> float:
    """Mean length of the backbone's token embeddings: what a vector needs to pass for one."""
    weights: Tensor = transformer.get_input_embeddings().weight  # type: ignore[operator]
    return float(weights.detach().float().norm(dim=-1).mean())
