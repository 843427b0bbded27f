"""ResRank: an encoder, and a reranker that reads each of its vectors as one token.

    resrank = ResRank.from_pretrained("./resrank")
    reranker = ResidualReranker(resrank)
    hits = reranker.rerank("where is Paris?", store.search(vector, top_k=100))

In one pass the reranker reads the query's text and one stored vector per passage; it reads no
passage's text. docs/resrank.md lists what the paper's abstract states and what was decided here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self, Unpack

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from e2rank_rag.closing import OpenModel
from e2rank_rag.errors import CheckpointError
from e2rank_rag.list_tokenization import ListTokenizer
from e2rank_rag.models.config import positions
from e2rank_rag.models.core import Core, R, evaluating, in_its_thread, not_finite
from e2rank_rag.models.cpu import use_onednn
from e2rank_rag.models.e2rank_folder import ENCODER_FOLDER
from e2rank_rag.models.encoder import Encoder
from e2rank_rag.models.files import inside, new_files, write_json
from e2rank_rag.models.folders import RECIPE_FILE, read_recipe_file, read_system
from e2rank_rag.models.residual import ListBackbone, ResidualHead
from e2rank_rag.models.runtime import OpenOptions, found_model
from e2rank_rag.models.worker import Worker, in_passing_thread
from e2rank_rag.prompts import Task
from e2rank_rag.recipe import EncoderOf, ResRankRecipe
from e2rank_rag.tokenization import TextTokenizer
from e2rank_rag.types import Embeddings, PromptUsage, T, TextEncoder

RERANKER_FOLDER = "reranker"
HEAD_FILE = "head.safetensors"


class ResidualVectors(NamedTuple):
    """Vectors with residuals, unit length: queries [n, dim], and each query's passages [k, dim].

    usage: one per query; `documents` counts passages, `tokens` the whole input.
    """

    queries: Embeddings
    passages: list[Embeddings]
    usage: tuple[PromptUsage, ...]


class ListModel(Core):
    """Adds residuals to lists of vectors.

    tokenizer: the reranker's, for the query's text.
    encoder: the encoder that made the vectors; it encodes queries.
    name, worker: see `Core`.
    """

    def __init__(
        self,
        backbone: ListBackbone,
        tokenizer: TextTokenizer,
        encoder: TextEncoder,
        *,
        name: str = "the model",
        worker: Worker | None = None,
    ) -> None:
        super().__init__(name, worker)
        self.backbone = backbone
        self.encoder = encoder
        limit = positions(backbone.transformer.config)  # type: ignore[arg-type]
        self.tokenizer = ListTokenizer(tokenizer, backbone.head.layout, limit=limit)

    @in_its_thread
    def encode_lists(
        self,
        queries: Sequence[str],
        passages: Sequence[Embeddings],
        *,
        query_vectors: Embeddings | None = None,
    ) -> ResidualVectors:
        """The vectors that rank each query's passages, given the encoder's vectors [k, dim].

        query_vectors: [n, dim], the encoder's vectors of these queries; None: they are encoded.
        Queries are cut at the reranker's limit; `usage` says which ones.

        Raises ValueError for an empty list, for vectors of another shape, and for a list that needs
        more positions than the reranker has; FloatingPointError for vectors that are not finite.
        """
        if len(passages) != len(queries):
            raise ValueError(f"{len(queries)} queries came with {len(passages)} lists of vectors")
        for number, vectors in enumerate(passages):
            if np.ndim(vectors) != 2 or np.shape(vectors)[1] != self.encoder.dim:
                raise ValueError(
                    f"list {number} has the shape {np.shape(vectors)}, not [k, {self.encoder.dim}]"
                )
        given = [np.asarray(vectors, dtype=np.float32) for vectors in passages]
        if query_vectors is None:
            query_vectors = self.encoder.encode_queries(queries)
        tokens = self.tokenizer.lists(queries, [len(vectors) for vectors in given])
        usage = tuple(
            PromptUsage(sum(row.passages), 0, len(row.ids), query_cut=row.cut) for row in tokens
        )
        better = np.empty_like(query_vectors)
        contextual: list[Embeddings] = list(given)

        def compute(rows: list[int], batch: dict[str, Tensor]) -> tuple[Embeddings, Embeddings]:
            return self._forward(batch, query_vectors[rows], [given[row] for row in rows])

        computed = self._computed(tokens, self.tokenizer.collate, compute, self.backbone)
        for rows, found in computed:
            better[rows] = found[0]
            for row, vectors in zip(rows, found[1], strict=True):
                contextual[row] = vectors[: len(given[row])]
        return ResidualVectors(better, contextual, usage)

    def _forward(
        self, batch: Mapping[str, Tensor], asked: Embeddings, passages: Sequence[Embeddings]
    ) -> tuple[Embeddings, Embeddings]:
        parameter = next(self.backbone.transformer.parameters())
        padded = pad_sequence([torch.from_numpy(each) for each in passages], batch_first=True)
        with evaluating(self.backbone):
            found = self.backbone(
                torch.from_numpy(asked).to(parameter.device), padded.to(parameter.device), **batch
            )
        queries, vectors = (each.float().cpu().numpy() for each in found)
        if not np.isfinite(queries).all() or not np.isfinite(vectors).all():
            raise not_finite("the reranker gave vectors", parameter.dtype)
        return queries, vectors


class ResRank(OpenModel, ListModel):
    """A `ListModel` in the thread of its device, with the encoder of its vectors.

    encoder: indexes and retrieves; `Encoder.from_pretrained` opens it alone from the same folder.

    Every method may be called from any thread. Close it, or use it as a context manager.
    """

    encoder: Encoder

    def __init__(
        self,
        encoder: Encoder,
        reranker: Encoder,
        head: ResidualHead,
        recipe: ResRankRecipe,
        *,
        name: str,
    ) -> None:
        """The ResRank owns both encoders: its `close` closes them."""
        self.name = name
        self.encoder = encoder
        self._reranker = reranker
        head = head.to(reranker.device)
        if reranker.device.type == "cpu":
            use_onednn(head)
        self.lists = ListModel(
            ListBackbone(reranker.loaded.transformer, head).eval(),
            reranker.tokenizer,
            encoder,
            name=name,
            worker=encoder.loaded.worker,
        )
        self.recipe = recipe

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        *,
        encoder: Encoder | None = None,
        task: Task | str | None = None,
        max_length: int | None = None,
        **options: Unpack[OpenOptions],
    ) -> Self:
        """Open a model folder or a hub id. The arguments are those of `Encoder.from_pretrained`.

        encoder: an open encoder with the weights that the ResRank was trained with; the ResRank
            closes it. None opens one.
        task and max_length are for the encoder only.

        Raises CheckpointError for a folder without a ResRank, and if the ResRank was trained with
        another encoder; ValueError for another open `encoder`.
        """
        name, folder = found_model(model, options)
        recipe = read_resrank_recipe(folder)
        with ExitStack() as opened:
            if encoder is None:
                encoder = Encoder.from_pretrained(
                    model, task=task, max_length=max_length, **options
                )
                opened.callback(encoder.close)
            else:
                _check_encoder(encoder, recipe, task=task, max_length=max_length)
            reranker = Encoder.from_pretrained(inside(folder, RERANKER_FOLDER), **options)
            opened.callback(reranker.close)
            sizes = encoder.dim, reranker.hidden_size
            head = in_passing_thread(lambda: read_head(folder, *sizes))
            resrank = cls(encoder, reranker, head, recipe, name=name)
            opened.pop_all()
        return resrank

    async def run_async(self, call: Callable[[], T]) -> T:
        """Run a call that uses this model without blocking the event loop."""
        return await self.encoder.run_async(call)

    def _run(self, method: Callable[..., R], *texts: Any, **options: Any) -> R:
        worker, lists = self.encoder.loaded.worker, self.lists
        return worker.run(partial(method, lists, *texts, **options))

    def save(self, folder: str | Path) -> Path:
        """Write encoder, reranker and head, so that the folder needs no other."""
        folder = Path(folder)
        self.encoder.save(inside(folder, ENCODER_FOLDER))
        self._reranker.save(inside(folder, RERANKER_FOLDER))
        encoder = EncoderOf(base=".", digest=self.encoder.digest)
        head = self.lists.backbone.head
        return save_head(folder, head, self.recipe.model_copy(update={"encoder": encoder}))

    def close(self) -> None:
        """Free both models, unless other objects use them. Safe to call twice."""
        self.encoder.close()
        self._reranker.close()
        # `lists` holds the reranker's weights. Later calls get the closed encoder's error.
        self.lists = None  # type: ignore[assignment]


def _check_encoder(encoder: Encoder, recipe: ResRankRecipe, **settings: object) -> None:
    """ValueError unless an open encoder has the weights that the recipe names."""
    given = [name for name, value in settings.items() if value is not None]
    if given:
        raise ValueError(
            f"{', '.join(given)} cannot be set for an encoder that is open: set it where the "
            "encoder is opened"
        )
    if encoder.digest != recipe.encoder.digest:
        raise ValueError(
            f"the ResRank was trained with an encoder of digest {recipe.encoder.digest}, and "
            f"{encoder.name} has {encoder.digest}: leave encoder out"
        )


def read_resrank_recipe(folder: Path) -> ResRankRecipe:
    """The recipe of a ResRank folder; CheckpointError if it holds no ResRank."""
    system = read_system(folder)
    if system != "resrank":
        found = f"says that it is {system!r}" if system else f"has no {RECIPE_FILE}"
        raise CheckpointError(f"{folder} holds no ResRank: it {found}")
    return read_recipe_file(folder / RECIPE_FILE, ResRankRecipe)


def save_head(folder: Path, head: ResidualHead, recipe: ResRankRecipe) -> Path:
    """Write the head and the recipe of a ResRank, without its two models."""
    with new_files(folder) as new:
        tensors = {name: each.contiguous().cpu() for name, each in head.state_dict().items()}
        save_file(tensors, new / HEAD_FILE)
        write_json(new / RECIPE_FILE, recipe.model_dump(mode="json"))
    return folder


def read_head(folder: Path, dim: int, width: int) -> ResidualHead:
    """The head that `save_head` wrote; CheckpointError if it does not fit.

    dim, width: dimensions of the encoder's vectors and of the reranker's hidden states.
    """
    head = ResidualHead(dim, width, read_resrank_recipe(folder).layout)
    path = inside(folder, HEAD_FILE)
    try:
        head.load_state_dict(load_file(path))
    except Exception as error:
        raise CheckpointError(f"the head in {path} cannot be read: {error}") from error
    return head
