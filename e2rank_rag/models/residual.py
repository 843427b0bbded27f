"""ResRank's modules: a list of vectors and a query's text in, vectors with a residual out.

ResRank's abstract says that each passage is one embedding and one token of the reranker, that
hidden states are added to the embeddings, and that scores are cosines. Each choice that it leaves
open is a field of `ResidualLayout`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from e2rank_rag.models.config import first_position
from e2rank_rag.models.e2rank import pool
from e2rank_rag.recipe import ResidualLayout


class ResidualHead(nn.Module):
    """The layers between an encoder's vectors and a reranker: a scale, gates and projections.

    dim, width: dimensions of the encoder's vectors and of the reranker's hidden states.
    scale: length of a vector as an input embedding, initially the backbone's mean token length.
    gates: initial factors of the hidden states of the query and of the passages.
    feedback: initial weight of the passages' mean, and initial sharpness of the softmax over their
        standardised cosines (one over the temperature of `feedback.Feedback`).
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
        """Vectors as input embeddings of the reranker: [..., D] -> [..., W]."""
        embeddings: Tensor = self.scale * self.inward(passages)
        return embeddings

    def add(
        self, asked: Tensor, passages: Tensor, states: Tensor, listed: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Vectors [B, D] and [B, K, D], unit length; states [B, K + 1, W], the query's first.

        listed: bool [B, K], True for a passage, False for padding.
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
        """Vectors with residuals: queries [B, D] and passages [B, K, D], unit length.

        asked [B, D], passages [B, K, D]: the encoder's vectors of queries and passages. The other
        tensors come from `collate_lists`.
        """
        transformer, head = self.transformer, self.head
        embeddings = transformer.get_input_embeddings()(input_ids)  # type: ignore[operator]
        inputs = head.inputs(passages).to(embeddings.dtype)
        # Row by row and in order: the places of the passages are numbered this way.
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
    """[B, K]: mean 0 and deviation 1 over the listed scores; all 0 if these are equal."""
    count = listed.sum(-1, keepdim=True).clamp(min=1)
    mean = scores.where(listed, 0.0).sum(-1, keepdim=True) / count
    apart = (scores - mean).where(listed, 0.0)
    variance = apart.square().sum(-1, keepdim=True) / count
    return apart / variance.clamp(min=1e-12).sqrt()


def token_length(transformer: nn.Module) -> float:
    """Mean length of the backbone's token embeddings."""
    weights: Tensor = transformer.get_input_embeddings().weight  # type: ignore[operator]
    return float(weights.detach().float().norm(dim=-1).mean())
