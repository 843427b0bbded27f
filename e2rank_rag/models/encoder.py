"""Encoder: text in, unit vectors out; one model for documents, queries and listwise prompts.

encoder = Encoder.from_pretrained("e2rank-minilm")
documents = encoder.encode_documents(["Paris is in France.", "Cats purr."])
queries = encoder.encode_queries(["where is Paris?"])
scores = queries @ documents.T
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, Self, get_args

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from e2rank_rag.errors import CheckpointError
from e2rank_rag.models.backbone import Backbone
from e2rank_rag.models.checkpoint import (
    RECIPE_FILE,
    encoder_folder,
    model_folders,
    read_recipe,
    save_checkpoint,
)
from e2rank_rag.models.families import positions
from e2rank_rag.models.loaded import (
    LoadedModel,
    LoadKey,
    ModelUser,
    acquire,
    load_encoder,
    release,
    stamp,
)
from e2rank_rag.models.names import find_model
from e2rank_rag.models.tokenizer_check import check_special_ids
from e2rank_rag.prompts import Prompts, Task, resolve_prompts, resolve_task
from e2rank_rag.recipe import EncoderOf, Pooling, Recipe
from e2rank_rag.tokenization import TextTokenizer, Tokens, collate, pad_id
from e2rank_rag.types import Cut, Embeddings, ListwiseEncoding, T

logger = logging.getLogger(__name__)

Dtype = Literal["float32", "bfloat16", "float16"]

BATCH_TOKENS = {"cpu": 2048, "cuda": 65536}
"""Tokens of one forward pass, padding included. A longer text than this is a batch of its own."""


class Encoder(ModelUser[LoadedModel]):
    """A text encoder with its recipe. Light: encoders of the same model share weights and thread.

    Every method may be called from any thread; the `a...` twins never block the event loop. Vectors
    are float32 [n, dim], unit length, in input order, and the same for a text alone and in any
    batch (to 1e-5 in float32). Close it, or use it as a context manager, to free the model.
    """

    def __init__(self, key: LoadKey, model: LoadedModel, recipe: Recipe, *, name: str) -> None:
        super().__init__(key, model, name=name)
        self.recipe = recipe
        self._backbone = Backbone(model.transformer, truncate_dim=recipe.truncate_dim)
        self._listwise_backbone = Backbone(model.listwise, truncate_dim=recipe.truncate_dim)
        self.tokenizer = model.worker.run(
            lambda: TextTokenizer(model.tokenizer, model.plain, recipe)
        )
        check_special_ids(self.tokenizer.special_ids, model.transformer)
        self.hidden_size = int(model.transformer.config.hidden_size)
        self.dim = recipe.truncate_dim or self.hidden_size
        self.feedback = recipe.feedback
        self.fingerprint = recipe.document_fingerprint(model.digest)

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        *,
        pooling: Pooling | None = None,
        prompts: Prompts | str | None = None,
        task: Task | str | None = None,
        dtype: Dtype | None = None,
        device: str | None = None,
        attn_implementation: str | None = None,
        max_length: int | None = None,
        truncate_dim: int | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
    ) -> Self:
        """Open a model folder, a hub id, or a model that needs neither.

        A Path is always a folder. A string is first a name of a model that ships with this package:
        "minilm" is all-MiniLM-L6-v2, from the `minilm` extra; "e2rank-minilm" is that with a
        listwise adapter of ours: the same vectors of documents and queries, a better reranking.
        Of a ResRank folder this opens the encoder.

        pooling, prompts: only where the folder does not say (see `checkpoint.read_recipe`).
        task: the instruction of causal models, one of `prompts.TASKS` or a Task of your own.
        dtype: float32 on a CPU and bfloat16 on CUDA by default.
        device: "cpu", "cuda", "cuda:1", ...; CUDA when there is one by default.
        max_length: limit for queries and documents, in tokens, special ones included.
        truncate_dim: keep this many leading dimensions (Matryoshka models).

        Raises CheckpointError when the folder is missing, damaged, or does not say how it encodes.
        """
        found = find_model(model, revision=revision, local_files_only=local_files_only)
        folder, part = encoder_folder(found.folder, local_files_only=local_files_only)
        recipe = read_recipe(
            folder,
            name=str(model),
            pooling=pooling,
            prompts=None if prompts is None else resolve_prompts(prompts),
            said=None if part is None else part.recipe,
        )
        changes: dict[str, object] = {}
        if max_length is not None:
            changes.update(query_tokens=max_length, document_tokens=max_length)
        if truncate_dim is not None:
            changes["truncate_dim"] = truncate_dim
        if task is not None:
            changes["prompts"] = recipe.prompts.model_copy(update={"task": resolve_task(task)})
        recipe = Recipe.model_validate({**dict(recipe), **changes})
        where = torch_device(device)
        folder = folder.resolve()
        weights, adapter = model_folders(folder, recipe, local_files_only=local_files_only)
        dtype_here = torch_dtype(dtype, where)
        files = stamp(weights, adapter)
        key = LoadKey(weights, files, dtype_here, where, attn_implementation, adapter)
        loaded = acquire(key, load_encoder)
        try:
            _check_base(recipe, loaded, name=found.name)
            _check_encoder(part, loaded, name=found.name)
            _check_numbers(recipe, loaded, name=found.name)
        except BaseException as error:
            release(key, loaded)
            if isinstance(error, ValueError) and not (changes or pooling or prompts):
                raise CheckpointError(str(error)) from error  # the folder's own numbers
            raise
        return cls(key, loaded, recipe, name=found.name)

    def with_recipe(self, recipe: Recipe) -> Encoder:
        """The same weights under another recipe (prompts, lengths); close both when done."""
        _check_numbers(recipe, self.loaded, name=self.name)
        return Encoder(self._key, acquire(self._key, load_encoder), recipe, name=self.name)

    def encode_queries(self, queries: Sequence[str], *, progress: bool | None = None) -> Embeddings:
        """Plain query vectors, float32 [n, dim]. ValueError for a query without any token."""
        texts = checked_texts(queries, "query")
        limit = self.recipe.query_tokens
        return self._encode_logged(
            "queries",
            limit,
            lambda: self.tokenizer.queries(texts),
            lambda tokens: self._queries(tokens, progress=progress),
        )

    def encode_documents(
        self,
        documents: Sequence[str],
        *,
        on_cut: Callable[[Cut], None] | None = None,
        progress: bool | None = None,
    ) -> Embeddings:
        """Document vectors, float32 [n, dim].

        Over-long texts are cut at `recipe.document_tokens`; `on_cut` is told how many, without it
        one warning per call is logged. progress: show a bar; None: on a terminal, for long calls.
        """
        texts = checked_texts(documents, "document")
        limit = self.recipe.document_tokens
        return self._encode_logged(
            "documents",
            limit,
            lambda: self.tokenizer.documents(texts),
            lambda tokens: self._forward(tokens, self._backbone, progress=progress),
            on_cut,
        )

    def encode_listwise(
        self,
        queries: Sequence[str],
        candidates: Sequence[Sequence[str]],
        *,
        depth: int | None = None,
        query_weight: float | None = None,
    ) -> ListwiseEncoding:
        """One vector per query, of a prompt that holds the query and its first `depth` candidates.

        This is E2Rank's pseudo-relevance-feedback query (arXiv 2510.22733, eq. 1): its cosine with
        a document's own vector is that document's score. depth: None takes the recipe's; 0 leaves
        the documents out. query_weight: `a` in `a * query + (1 - a) * listwise`, scaled to unit
        length; None takes the recipe's.
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
        lists = [checked_texts(documents[:depth], "candidate") for documents in candidates]

        def encode() -> ListwiseEncoding:
            tokens, usage = self.tokenizer.listwise(texts, lists, depth)
            vectors = self._forward(tokens, self._listwise_backbone)
            if weight > 0.0 and texts:
                plain = self._queries(self.tokenizer.queries(texts))
                vectors = weight * plain + (1.0 - weight) * vectors
                vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            return ListwiseEncoding(vectors.astype(np.float32, copy=False), tuple(usage))

        return self._worker_run(encode)

    def encode_verbatim(self, prompts: Sequence[str]) -> Embeddings:
        """Finished prompts whose special tokens are meant: for checks against published vectors."""
        return self._worker_run(
            lambda: self._forward(
                [self.tokenizer.verbatim(prompt) for prompt in prompts], self._listwise_backbone
            )
        )

    async def aencode_queries(self, queries: Sequence[str]) -> Embeddings:
        """`encode_queries` without blocking the event loop."""
        return await self.run_async(partial(self.encode_queries, queries))

    async def aencode_documents(
        self, documents: Sequence[str], *, on_cut: Callable[[Cut], None] | None = None
    ) -> Embeddings:
        """`encode_documents` without blocking the event loop."""
        return await self.run_async(partial(self.encode_documents, documents, on_cut=on_cut))

    async def aencode_listwise(
        self,
        queries: Sequence[str],
        candidates: Sequence[Sequence[str]],
        *,
        depth: int | None = None,
        query_weight: float | None = None,
    ) -> ListwiseEncoding:
        """`encode_listwise` without blocking the event loop."""
        call = partial(
            self.encode_listwise, queries, candidates, depth=depth, query_weight=query_weight
        )
        return await self.run_async(call)

    def save(self, folder: str | Path) -> Path:
        """Write model and recipe; `SentenceTransformer(folder)` opens it with the same vectors."""
        loaded = self.loaded
        return loaded.worker.run(
            lambda: save_checkpoint(
                folder,
                loaded.transformer,
                loaded.tokenizer,
                self.recipe,
                adapter=self._key.adapter,
            )
        )

    @property
    def weights_folder(self) -> Path:
        """Where the weights of queries and documents were read."""
        return self._key.folder

    def _drop(self) -> None:
        # Not deleted: a call that is running finds out by `loaded` that this was closed.
        self._backbone = self._listwise_backbone = None  # type: ignore[assignment]

    def _worker_run(self, call: Callable[[], T]) -> T:
        return self.loaded.worker.run(call)

    def _encode_logged(
        self,
        kind: str,
        limit: int,
        tokenise: Callable[[], list[Tokens]],
        forward: Callable[[list[Tokens]], Embeddings],
        on_cut: Callable[[Cut], None] | None = None,
    ) -> Embeddings:
        cut = Cut(0, 0, limit)

        def encode() -> Embeddings:
            nonlocal cut
            tokens = tokenise()
            cut = Cut(sum(row.cut for row in tokens), len(tokens), limit)
            return forward(tokens)

        vectors = self._worker_run(encode)
        if cut.texts and on_cut is not None:
            on_cut(cut)
        elif cut.texts:
            logger.warning(
                "%d of %d %s were longer than %d tokens and were cut there", *cut[:2], kind, limit
            )
        return vectors

    def _queries(self, tokens: Sequence[Tokens], *, progress: bool | None = False) -> Embeddings:
        """As `_forward`, but for those that were asked for lately."""
        recent = self.loaded.queries
        keys = [(self.dim, tuple(row.ids), tuple(row.slots)) for row in tokens]
        vectors = np.empty((len(tokens), self.dim), dtype=np.float32)
        fresh = []
        for row, key in enumerate(keys):
            known = recent.get(key)
            if known is None:
                fresh.append(row)
            else:
                vectors[row] = known
        asked = [tokens[row] for row in fresh]
        vectors[fresh] = self._forward(asked, self._backbone, progress=progress)
        for row in fresh:
            recent.put(keys[row], vectors[row])
        return vectors

    def _forward(
        self, tokens: Sequence[Tokens], backbone: Backbone, *, progress: bool | None = False
    ) -> Embeddings:
        """Batches of similar length through the model; runs in the worker thread."""
        loaded, device = self.loaded, self._key.device
        vectors = np.empty((len(tokens), self.dim), dtype=np.float32)
        batches = list(batches_by_length([len(row.ids) for row in tokens], batch_tokens(device)))
        padding = pad_id(loaded.tokenizer)
        with torch.inference_mode():
            for rows in _tracked(batches, progress):
                loaded.worker.check_cancelled()
                batch = collate([tokens[row] for row in rows], pad_id=padding)
                output = backbone(**{name: part.to(device) for name, part in batch.items()})
                vectors[rows] = output[:, 0].float().cpu().numpy()
        if not (np.linalg.norm(vectors, axis=1) > 0.5).all():
            raise not_finite(f"{self.name} gave vectors", self._key.dtype, "not finite or zero")
        return vectors


def batches_by_length(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Indices in batches of similar length, each at most `budget` tokens, padding included.

    Longest first: what does not fit into memory fails at once, and the time left is not flattered.
    """
    batch: list[int] = []
    width = 0
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        width = width or lengths[index]
        if batch and width * (len(batch) + 1) > budget:
            yield batch
            batch, width = [], lengths[index]
        batch.append(index)
    if batch:
        yield batch


def _tracked(batches: list[list[int]], progress: bool | None) -> Iterator[list[int]]:
    console = Console(stderr=True)
    long = len(batches) > 50
    shown = (console.is_terminal and long) if progress is None else progress
    if not shown:
        yield from batches
        return
    yield from track(batches, description="encoding", console=console, transient=True)


def batch_tokens(device: torch.device) -> int:
    """`BATCH_TOKENS` of this device."""
    return BATCH_TOKENS["cpu" if device.type == "cpu" else "cuda"]


def checked_texts(texts: Sequence[str], kind: str) -> list[str]:
    """Texts as a list; anything but a string that can be written as UTF-8 is an error."""
    if isinstance(texts, str):
        raise TypeError(f"expected a list of texts, got one string; write [{texts[:40]!r}]")
    texts = list(texts)
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"{kind} {index} is a {type(text).__name__}, not a string")
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise ValueError(
                    f"{kind} {index} has a lone surrogate at character {error.start}, which is no "
                    'text; clean it with text.encode("utf-8", "replace").decode()'
                ) from None
    return texts


def torch_device(device: str | None) -> torch.device:
    """A device by its name, always the same for the same one; None: CUDA where there is one."""
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if where.type == "cuda" and where.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu") if where.type == "cpu" else where


def torch_dtype(dtype: str | None, device: torch.device) -> torch.dtype:
    """A dtype by its name; None: bfloat16 on CUDA, float32 elsewhere."""
    if dtype is None:
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if dtype not in get_args(Dtype):
        raise ValueError(f"dtype must be one of {list(get_args(Dtype))}, got {dtype!r}")
    found: torch.dtype = getattr(torch, dtype)
    return found


def not_finite(what: str, dtype: torch.dtype, how: str = "not finite") -> FloatingPointError:
    """The error for numbers of a model that nobody can rank by, and what helps."""
    if dtype == torch.float32:
        way = "float32 is the widest there is: the weights are damaged, or vectors that were given"
    else:
        way = 'open it with dtype="float32"'
    return FloatingPointError(f"{what} in {dtype} that are {how}; {way}")


def _check_base(recipe: Recipe, loaded: LoadedModel, *, name: str) -> None:
    if recipe.adapter is not None and recipe.adapter.digest != loaded.digest:
        raise CheckpointError(
            f"the listwise adapter of {name} was trained on other weights than those of "
            f"{recipe.adapter.base!r} here; name the folder of its own base in {RECIPE_FILE}"
        )


def _check_encoder(part: EncoderOf | None, loaded: LoadedModel, *, name: str) -> None:
    if part is not None and part.digest != loaded.digest:
        raise CheckpointError(
            f"the reranker of {name} was trained on vectors of other weights than those of its "
            f"encoder here; name the folder of its own encoder in {RECIPE_FILE}"
        )


def _check_numbers(recipe: Recipe, loaded: LoadedModel, *, name: str) -> None:
    dimensions = int(loaded.transformer.config.hidden_size)
    if recipe.truncate_dim is not None and recipe.truncate_dim > dimensions:
        raise ValueError(
            f"truncate_dim is {recipe.truncate_dim}, but {name} has {dimensions} dimensions"
        )
    limit = positions(loaded.transformer.config)
    lengths = {
        "query_tokens": recipe.query_tokens,
        "document_tokens": recipe.document_tokens,
        "listwise.max_tokens": recipe.listwise.max_tokens,
    }
    for part, length in lengths.items():
        if length > limit:
            raise ValueError(f"{part} is {length}, but {name} can place {limit} tokens only")
