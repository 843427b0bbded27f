"""Encoder: text in, unit vectors out; one model for documents, queries and listwise prompts.

encoder = Encoder.from_pretrained("e2rank-minilm")
documents = encoder.encode_documents(["Paris is in France.", "Cats purr."])
queries = encoder.encode_queries(["where is Paris?"])
scores = queries @ documents.T
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Self, Unpack

import torch
from transformers import PreTrainedModel

from e2rank_rag.errors import CheckpointError
from e2rank_rag.models.adapter import with_adapter
from e2rank_rag.models.config import positions
from e2rank_rag.models.core import ModelUser
from e2rank_rag.models.cpu import pack
from e2rank_rag.models.e2rank import Backbone, RecentVectors, TextModel
from e2rank_rag.models.e2rank_folder import (
    encoder_folder,
    model_folders,
    read_recipe,
    save_checkpoint,
)
from e2rank_rag.models.folders import RECIPE_FILE
from e2rank_rag.models.runtime import (
    LoadKey,
    OpenOptions,
    Shared,
    acquire,
    found_model,
    placed,
    release,
    trying,
)
from e2rank_rag.models.tokenizer_files import check_ids, check_special_ids, load_tokenizer
from e2rank_rag.models.weights import load_transformer, weights_digest
from e2rank_rag.models.worker import Worker
from e2rank_rag.prompts import Prompts, Task, resolve_prompts, resolve_task
from e2rank_rag.recipe import EncoderOf, Pooling, Recipe
from e2rank_rag.tokenization import TextTokenizer, plain_tokenizer
from e2rank_rag.types import Cut, Embeddings, ListwiseEncoding, ListwiseOptions


@dataclass(kw_only=True)
class LoadedModel(Shared):
    """What the encoders of one model share.

    listwise: the module that reads listwise prompts; the transformer itself without an adapter.
    queries: vectors of recent queries. A pipeline encodes a query to search. Its reranker, often
        with another encoder of the same model, then needs the same vector. Without this cache a
        Haystack chain of embedder, retriever and ranker takes 3% more processor time (rounds: 1.03,
        1.03, 1.03, 1.06; AMD EPYC, one thread, 100 candidates).
    """

    transformer: PreTrainedModel
    listwise: PreTrainedModel
    queries: RecentVectors = field(default_factory=lambda: RecentVectors(256))


class Encoder(ModelUser[LoadedModel, TextModel], TextModel):
    """A `TextModel` in the thread of its device. Encoders of one model share weights and thread.

    Every method may be called from any thread; the `a...` twins never block the event loop. Vectors
    are float32 [n, dim], unit length, in input order, and the same for a text alone and in any
    batch (to 1e-5 in float32). Close it, or use it as a context manager, to free the model.
    """

    def __init__(self, key: LoadKey, model: LoadedModel, recipe: Recipe, *, name: str) -> None:
        super().__init__(key, model, name=name)
        self.recipe = recipe
        self.tokenizer = model.worker.run(
            lambda: TextTokenizer(model.tokenizer, model.plain, recipe)
        )
        check_special_ids(self.tokenizer.special_ids, model.transformer)
        self.hidden_size = int(model.transformer.config.hidden_size)
        self.feedback = recipe.feedback
        self.evidence = recipe.evidence
        self.fingerprint = recipe.document_fingerprint(model.digest)
        self._core = TextModel(
            model.transformer,
            self.tokenizer,
            listwise=None if recipe.adapter is None else model.listwise,
            fingerprint=self.fingerprint,
            name=name,
            recent=model.queries,
            worker=model.worker,
        )
        self.dim = self._core.dim

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        *,
        pooling: Pooling | None = None,
        prompts: Prompts | str | None = None,
        task: Task | str | None = None,
        max_length: int | None = None,
        truncate_dim: int | None = None,
        **options: Unpack[OpenOptions],
    ) -> Self:
        """Open a shipped model by its name, a model folder or a hub id.

        A Path is always a folder, and a ResRank's folder gives its encoder. Shipped are "minilm"
        (all-MiniLM-L6-v2, in the `minilm` extra) and "e2rank-minilm", which has a listwise adapter.

        pooling, prompts: needed only if the folder does not state them, see `read_recipe`.
        task: the instruction for causal models, one of `prompts.TASKS` or a Task.
        max_length: limit for queries and documents in tokens, special tokens included.
        truncate_dim: how many leading dimensions to keep (Matryoshka models).
        options: dtype, device, threads, attn_implementation, revision and local_files_only, see
            `OpenOptions`.

        CheckpointError: the folder is missing or damaged, or states no pooling and prompts.
        """
        found = found_model(model, options)
        local_files_only = options.get("local_files_only", False)
        folder, part = encoder_folder(found.folder, local_files_only=local_files_only)
        named = None if prompts is None else resolve_prompts(prompts)
        stored = None if part is None else part.recipe
        recipe = read_recipe(folder, str(model), pooling, prompts=named, stored=stored)
        changes = _changes(recipe, task, max_length, truncate_dim)
        recipe = Recipe.model_validate({**dict(recipe), **changes})
        weights, adapter = model_folders(folder.resolve(), recipe, local_files_only)
        key = LoadKey.of(weights, options, adapter=adapter)
        own = not (changes or pooling or prompts)
        loaded = _checked(key, recipe, part, name=found.name, own=own)
        return cls(key, loaded, recipe, name=found.name)

    def with_recipe(self, recipe: Recipe) -> Encoder:
        """The same weights under another recipe (prompts, lengths); close both when done."""
        _check_numbers(recipe, self.loaded, name=self.name)
        return Encoder(self._key, acquire(self._key, load_encoder), recipe, name=self.name)

    def without_adapter(self) -> Encoder:
        """The same weights with listwise prompts that no adapter reads; close both when done.

        Raises:
            ValueError: the model has no listwise adapter.
        """
        if self.recipe.adapter is None:
            raise ValueError(
                f"{self.name} has no listwise adapter to leave out: its prompts are read by the "
                "weights that read queries and documents; use it as it is"
            )
        return self.with_recipe(self.recipe.model_copy(update={"adapter": None}))

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
        **options: Unpack[ListwiseOptions],
    ) -> ListwiseEncoding:
        """`encode_listwise` without blocking the event loop."""
        call = partial(self.encode_listwise, queries, candidates, **options)
        return await self.run_async(call)

    def forget_queries(self) -> None:
        """Drop the cached vectors of recent queries, so that the next ones cost a forward pass."""
        loaded = self.loaded
        loaded.worker.run(loaded.queries.clear)

    def save(self, folder: str | Path) -> Path:
        """Write model and recipe; `SentenceTransformer(folder)` opens it with the same vectors."""
        loaded, adapter = self.loaded, self._key.adapter
        return loaded.worker.run(
            lambda: save_checkpoint(
                folder, loaded.transformer, loaded.tokenizer, self.recipe, adapter=adapter
            )
        )

    @property
    def weights_folder(self) -> Path:
        """The folder that the weights for queries and documents were read from."""
        return self._key.folder


def load_encoder(key: LoadKey) -> LoadedModel:
    """Weights, listwise adapter and tokenizer of an encoder."""
    tokenizer = load_tokenizer(key.folder)
    load = partial(load_transformer, key.folder, attn_implementation=key.attn_implementation)
    transformer = load(dtype=key.dtype)
    plain = plain_tokenizer(tokenizer)
    check_ids(tokenizer, plain, transformer)
    # The digest is computed from bfloat16 values, which rounding to float16 first would change.
    rounded = key.dtype == torch.float16
    digest = weights_digest(load(dtype=torch.float32) if rounded else transformer)
    # Moved before the adapter is added, so that both modules share their tensors on the device too.
    transformer = placed(transformer, key)
    listwise = transformer if key.adapter is None else with_adapter(transformer, key.adapter)
    for module in {transformer, listwise}:
        pack(module)
    with trying(key.folder):
        ids = torch.tensor([tokenizer("a")["input_ids"]], device=key.device)
        Backbone(transformer)(ids, torch.ones_like(ids), torch.ones_like(ids))
    return LoadedModel(
        transformer=transformer,
        listwise=listwise,
        tokenizer=tokenizer,
        plain=plain,
        digest=digest,
        worker=Worker(str(key.device), key.threads),
    )


def _changes(
    recipe: Recipe, task: Task | str | None, max_length: int | None, truncate_dim: int | None
) -> dict[str, object]:
    """The fields of a recipe that the caller changes."""
    changes: dict[str, object] = {}
    if max_length is not None:
        changes.update(query_tokens=max_length, document_tokens=max_length)
    if truncate_dim is not None:
        changes["truncate_dim"] = truncate_dim
    if task is not None:
        changes["prompts"] = recipe.prompts.model_copy(update={"task": resolve_task(task)})
    return changes


def _checked(
    key: LoadKey, recipe: Recipe, part: EncoderOf | None, *, name: str, own: bool
) -> LoadedModel:
    """The loaded model, if recipe and weights fit each other.

    own: the caller changed nothing in the recipe, so wrong numbers are the folder's fault.
    """
    loaded = acquire(key, load_encoder)
    try:
        _check_digests(recipe, part, loaded, name=name)
        _check_numbers(recipe, loaded, name=name)
    except BaseException as error:
        release(key, loaded)
        if own and isinstance(error, ValueError):
            raise CheckpointError(str(error)) from error
        raise
    return loaded


def _check_digests(
    recipe: Recipe, part: EncoderOf | None, loaded: LoadedModel, *, name: str
) -> None:
    """CheckpointError for an adapter or a reranker that was trained on other weights."""
    if recipe.adapter is not None and recipe.adapter.digest != loaded.digest:
        raise CheckpointError(
            f"the listwise adapter of {name} was trained on other weights than those of "
            f"{recipe.adapter.base!r} here; name the folder of its own base in {RECIPE_FILE}"
        )
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
