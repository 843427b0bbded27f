"""ResRank: an encoder whose vectors are one token each of a reranker.

    resrank = ResRank.from_pretrained("./resrank")
    reranker = ResidualReranker(resrank)
    hits = reranker.rerank("where is Paris?", store.search(vector, top_k=100))

The reranker reads the query's text and one stored vector per passage, in one pass, and no text of
a passage. What is known of the paper, and what was decided here, is in docs/resrank.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from e2rank_rag.closing import OpenModel
from e2rank_rag.errors import CheckpointError
from e2rank_rag.models.config import positions
from e2rank_rag.models.cpu import use_onednn
from e2rank_rag.models.encoder import Encoder
from e2rank_rag.models.files import inside, new_files, write_json
from e2rank_rag.models.folders import RECIPE_FILE, resolve_folder
from e2rank_rag.models.residual import (
    ENCODER_FOLDER,
    RERANKER_FOLDER,
    EncoderOf,
    ListBackbone,
    ListTokens,
    ResidualHead,
    ResRankRecipe,
    collate_lists,
    list_tokens,
    read_resrank_recipe,
)
from e2rank_rag.models.runtime import Dtype, batch_tokens, in_passing_thread, not_finite
from e2rank_rag.prompts import Task
from e2rank_rag.tokenization import TextTokenizer, batches_by_length, pad_id
from e2rank_rag.types import Embeddings, PromptUsage, T, TextEncoder

HEAD_FILE = "head.safetensors"


class ResidualVectors(NamedTuple):
    """Vectors that rank, unit length: of queries [n, dim], of each query's passages [k, dim].

    usage: one per query; `documents` passages took a token each, `tokens` are all of the input.
    """

    queries: Embeddings
    passages: list[Embeddings]
    usage: tuple[PromptUsage, ...]


class ListEncoder(Protocol):
    """What `ResidualReranker` needs of a model."""

    @property
    def encoder(self) -> TextEncoder:
        """Makes the vectors that the lists consist of."""
        ...

    def encode_lists(
        self, queries: Sequence[str], passages: Sequence[Embeddings]
    ) -> ResidualVectors: ...

    def close(self) -> None: ...


class ResRank(OpenModel):
    """An encoder and the reranker of its vectors. Opened from a folder that `save` wrote.

    encoder: indexes and retrieves; `Encoder.from_pretrained` of the same folder opens it alone.

    Every method may be called from any thread. Close it, or use it as a context manager.
    """

    def __init__(
        self,
        encoder: Encoder,
        reranker: Encoder,
        head: ResidualHead,
        recipe: ResRankRecipe,
        *,
        name: str,
    ) -> None:
        """Takes both encoders over: closing this closes them."""
        self.name = name
        self.encoder = encoder
        self.recipe = recipe
        self._reranker = reranker
        loaded = reranker.loaded
        head = head.to(reranker.device)
        if reranker.device.type == "cpu":
            use_onednn(head)
        ranker = ListBackbone(loaded.transformer, head).eval()
        self._lists = ListModel(ranker, reranker.tokenizer, pad_id(loaded.tokenizer))

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        *,
        task: Task | str | None = None,
        max_length: int | None = None,
        dtype: Dtype | None = None,
        device: str | None = None,
        attn_implementation: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
    ) -> Self:
        """Open a folder or a hub id; arguments as in `Encoder.from_pretrained`, `task` and
        `max_length` of the encoder only.

        Raises CheckpointError when it holds no ResRank, or another encoder than it was trained on.
        """
        folder = resolve_folder(model, revision=revision, local_files_only=local_files_only)
        recipe = read_resrank_recipe(folder)
        options: dict[str, Any] = {
            "dtype": dtype,
            "device": device,
            "attn_implementation": attn_implementation,
            "local_files_only": local_files_only,
        }
        encoder = Encoder.from_pretrained(
            model, task=task, max_length=max_length, revision=revision, **options
        )
        try:
            reranker = Encoder.from_pretrained(inside(folder, RERANKER_FOLDER), **options)
        except BaseException:
            encoder.close()
            raise
        try:
            head = in_passing_thread(lambda: read_head(folder, encoder.dim, reranker.hidden_size))
            return cls(encoder, reranker, head, recipe, name=encoder.name)
        except BaseException:
            encoder.close()
            reranker.close()
            raise

    def encode_lists(
        self, queries: Sequence[str], passages: Sequence[Embeddings]
    ) -> ResidualVectors:
        """The vectors that rank each query's passages, given the encoder's [k, dim] of them.

        Queries are cut at the reranker's length, which the usage says. Raises ValueError for an
        empty list, one of other vectors, and one that the reranker has no positions for.
        """
        worker, lists = self.encoder.loaded.worker, self._lists
        if len(passages) != len(queries):
            raise ValueError(f"{len(queries)} queries came with {len(passages)} lists of vectors")
        for number, vectors in enumerate(passages):
            if np.ndim(vectors) != 2 or np.shape(vectors)[1] != self.encoder.dim:
                raise ValueError(
                    f"list {number} has the shape {np.shape(vectors)}, not [k, {self.encoder.dim}]"
                )
        given = [np.asarray(vectors, dtype=np.float32) for vectors in passages]

        def encode() -> ResidualVectors:
            asked = self.encoder.encode_queries(queries)
            return lists(queries, asked, given, between=worker.check_cancelled)

        return worker.run(encode)

    async def run_async(self, call: Callable[[], T]) -> T:
        """Run a call that uses this model without blocking the event loop."""
        return await self.encoder.run_async(call)

    def save(self, folder: str | Path) -> Path:
        """Write encoder, reranker and head; the folder needs nothing else."""
        folder = Path(folder)
        self.encoder.save(inside(folder, ENCODER_FOLDER))
        self._reranker.save(inside(folder, RERANKER_FOLDER))
        encoder = EncoderOf(base=".", digest=self.encoder.digest)
        head = self._lists.ranker.head
        return save_head(folder, head, self.recipe.model_copy(update={"encoder": encoder}))

    def close(self) -> None:
        """Give both models back. Safe to call twice."""
        self.encoder.close()
        self._reranker.close()
        # It holds the reranker's weights. A later call learns from the encoder that this is closed.
        self._lists = None  # type: ignore[assignment]


class ListModel:
    """Lists of vectors through a `ListBackbone`, in batches; for one thread."""

    def __init__(self, ranker: ListBackbone, tokenizer: TextTokenizer, padding: int) -> None:
        self.ranker = ranker
        self.tokenizer = tokenizer
        self.padding = padding

    def tokens(self, queries: Sequence[str], counts: Sequence[int]) -> list[ListTokens]:
        """The input of each query over so many passages."""
        if counts and min(counts) < 1:
            raise ValueError(f"list {list(counts).index(min(counts))} has no passages")
        layout = self.ranker.head.layout
        limit = positions(self.ranker.transformer.config)  # type: ignore[arg-type]
        closing = self.tokenizer.suffix or (self.padding,)
        # Cut as an encoder cuts it, so that a query of any length leaves room for passages.
        asked = self.tokenizer.queries(queries, most=limit - 1 - len(closing))
        rows = []
        for query, count in zip(asked, counts, strict=True):
            row = list_tokens(query, count, layout, closing=closing)
            taken = max(row.positions) + 1
            if taken > limit:
                raise ValueError(
                    f"{count} passages and {len(row.ids) - count} tokens of text take {taken} "
                    f"positions, the reranker has {limit}: rerank fewer, or in windows "
                    "(`ResidualReranker(..., window=Window(...))`)"
                )
            rows.append(row)
        return rows

    def __call__(
        self,
        queries: Sequence[str],
        asked: Embeddings,
        passages: Sequence[Embeddings],
        *,
        between: Callable[[], None] = lambda: None,
    ) -> ResidualVectors:
        """As `ResRank.encode_lists`, with the encoder's vectors of the queries; calls `between`
        two batches."""
        tokens = self.tokens(queries, [len(vectors) for vectors in passages])
        usage = tuple(
            PromptUsage(sum(row.passages), 0, len(row.ids), query_cut=row.cut) for row in tokens
        )
        better = np.empty_like(asked)
        contextual: list[Embeddings] = list(passages)
        budget = batch_tokens(next(self.ranker.parameters()).device)
        for rows in batches_by_length([len(row.ids) for row in tokens], budget):
            between()
            lists = [passages[row] for row in rows]
            found = self._forward([tokens[row] for row in rows], asked[rows], lists)
            better[rows] = found[0]
            for row, vectors in zip(rows, found[1], strict=True):
                contextual[row] = vectors[: len(passages[row])]
        return ResidualVectors(better, contextual, usage)

    def _forward(
        self, tokens: Sequence[ListTokens], asked: Embeddings, passages: Sequence[Embeddings]
    ) -> tuple[Embeddings, Embeddings]:
        device = next(self.ranker.parameters()).device
        batch = collate_lists(tokens, pad_id=self.padding)
        tensors = {"asked": torch.from_numpy(asked), "passages": padded_vectors(passages), **batch}
        with torch.inference_mode():
            queries, vectors = self.ranker(**{name: t.to(device) for name, t in tensors.items()})
        found = queries.float().cpu().numpy(), vectors.float().cpu().numpy()
        if not np.isfinite(found[0]).all() or not np.isfinite(found[1]).all():
            dtype = next(self.ranker.transformer.parameters()).dtype
            raise not_finite("the reranker gave vectors", dtype)
        return found


def padded_vectors(lists: Sequence[Embeddings]) -> torch.Tensor:
    """[B, K, D], zeros behind shorter lists."""
    tensors = [torch.from_numpy(np.ascontiguousarray(vectors)) for vectors in lists]
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True)


def save_head(folder: Path, head: ResidualHead, recipe: ResRankRecipe) -> Path:
    """Write what a ResRank has beside its two models."""
    with new_files(folder) as new:
        tensors = {name: each.contiguous().cpu() for name, each in head.state_dict().items()}
        save_file(tensors, new / HEAD_FILE)
        write_json(new / RECIPE_FILE, recipe.model_dump(mode="json"))
    return folder


def read_head(folder: Path, dim: int, width: int) -> ResidualHead:
    """What `save_head` wrote; CheckpointError where it fits no such vectors and states."""
    head = ResidualHead(dim, width, read_resrank_recipe(folder).layout)
    path = inside(folder, HEAD_FILE)
    try:
        head.load_state_dict(load_file(path))
    except Exception as error:
        raise CheckpointError(f"the head in {path} cannot be read: {error}") from error
    return head
