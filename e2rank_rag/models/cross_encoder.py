"""Cross-encoders, such as RankT5 (arXiv 2210.10634): a score for each query with each document.

model = CrossEncoder.from_pretrained("cross-encoder/ms-marco-MiniLM-L6-v2")
(scores,), usage = model.score(["where is Paris?"], [["Paris is in France.", "Cats purr."]])
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self, Unpack

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from e2rank_rag.errors import CheckpointError
from e2rank_rag.models.core import Core, ModelUser, evaluating, in_its_thread, not_finite
from e2rank_rag.models.cross_encoder_folder import (
    load_cross_encoder,
    pair_logits,
    read_cross_encoder_recipe,
    reads_segments,
    save_cross_encoder,
)
from e2rank_rag.models.runtime import (
    LoadKey,
    OpenOptions,
    Shared,
    acquire,
    found_model,
    placed,
    trying,
)
from e2rank_rag.models.tokenizer_files import check_ids, check_special_ids, load_tokenizer
from e2rank_rag.models.weights import weights_digest
from e2rank_rag.models.worker import Worker
from e2rank_rag.pair_tokenization import PairTokenizer
from e2rank_rag.recipe import CrossEncoderRecipe, Structure
from e2rank_rag.tokenization import (
    MIN_SHARE,
    Tokens,
    checked_texts,
    pad_id,
    plain_tokenizer,
    token_id,
)
from e2rank_rag.types import PairScores, PromptUsage


@dataclass(kw_only=True)
class LoadedCrossEncoder(Shared):
    """What the `CrossEncoder` objects of one model share."""

    model: PreTrainedModel


class PairModel(Core):
    """Pairs of texts to scores. Satisfies `types.PairRanker`.

    model: from `load_cross_encoder`; it may be wrapped, for example by peft.
    name, worker: see `Core`.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        recipe: CrossEncoderRecipe,
        *,
        plain: Tokenizer | None = None,
        name: str = "the model",
        worker: Worker | None = None,
    ) -> None:
        super().__init__(name, worker)
        self.model = model
        self.recipe = recipe
        config: Any = model.config
        self._score_id: int | None = None
        self._start_id: int | None = None
        if recipe.score_token is not None:
            self._score_id = token_id(tokenizer, recipe.score_token, _NO_SCORE)
            self._start_id = _start_id(config, tokenizer)
            check_special_ids([self._score_id, self._start_id], model)
        self.tokenizer = PairTokenizer(
            tokenizer,
            plain_tokenizer(tokenizer) if plain is None else plain,
            recipe,
            segments=reads_segments(config),
            padding=config.pad_token_id if recipe.input == "segments" else None,
        )

    @in_its_thread
    def score(
        self,
        queries: Sequence[str],
        documents: Sequence[Sequence[str]],
        *,
        least: int = MIN_SHARE,
    ) -> PairScores:
        """A score for each query with each of its documents; higher is better.

        Documents are cut so that a pair has at most `recipe.max_tokens`; queries are never cut. The
        usage counts cut documents.

        least: tokens that a query must leave for a document.

        Raises ValueError for an empty query, for a query that leaves fewer tokens, and if the
        numbers of queries and lists differ; FloatingPointError for scores that are not finite.
        """
        asked = checked_texts(queries, "query")
        if len(documents) != len(asked):
            raise ValueError(f"{len(asked)} queries came with {len(documents)} lists of documents")
        lists = [
            self.tokenizer.pairs(query, checked_texts(texts, "document"), least=least)
            for query, texts in zip(asked, documents, strict=True)
        ]
        scores = self._forward([pair for each in lists for pair in each])
        ends = np.cumsum([len(each) for each in lists])[:-1]
        split = np.split(scores, ends) if lists else []
        return PairScores(split, tuple(map(_usage, lists)))

    @in_its_thread
    def room(self, query: str) -> int:
        """Tokens that a query leaves for a document; ValueError for an empty query."""
        (query,) = checked_texts([query], "query")
        return self.tokenizer.room(query)

    def read(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """Scores of a batch from `PairTokenizer.collate`, float32 [B]."""
        return pair_logits(model, batch, self._score_id, self._start_id)

    def _forward(self, pairs: Sequence[Tokens]) -> NDArray[np.float32]:
        def compute(_: list[int], batch: dict[str, Tensor]) -> NDArray[np.float32]:
            with evaluating(self.model):
                found: NDArray[np.float32] = self.read(self.model, batch).cpu().numpy()
                return found

        scores = np.empty(len(pairs), dtype=np.float32)
        for rows, found in self._computed(pairs, self.tokenizer.collate, compute, self.model):
            scores[rows] = found
        if not np.isfinite(scores).all():
            raise not_finite(f"{self.name} gave scores", next(self.model.parameters()).dtype)
        return scores


class CrossEncoder(ModelUser[LoadedCrossEncoder, PairModel], PairModel):
    """A `PairModel` in the thread of its device. Objects of one model share weights and thread.

    Every method may be called from any thread; `run_async` never blocks the event loop. Scores are
    unbounded numbers that order the documents of one query. A pair has the same score alone and in
    any batch (to 1e-5 in float32; in bfloat16 scores have three digits, so some are equal). Close
    it, or use it as a context manager, to free the model.
    """

    def __init__(
        self, key: LoadKey, model: LoadedCrossEncoder, recipe: CrossEncoderRecipe, name: str
    ) -> None:
        super().__init__(key, model, name=name)
        self.recipe = recipe
        self._core = model.worker.run(
            lambda: PairModel(
                model.model,
                model.tokenizer,
                recipe,
                plain=model.plain,
                name=name,
                worker=model.worker,
            )
        )

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        *,
        structure: Structure | None = None,
        score_token: str | None = None,
        pooling: str | None = None,
        max_length: int | None = None,
        **options: Unpack[OpenOptions],
    ) -> Self:
        """Open a model folder or a hub id.

        The model was saved by stage `rankt5`, or is a T5 or Flan-T5 as encoder-decoder (the
        released RankT5 weights, once converted to safetensors), or a cross-encoder with one score,
        such as those of sentence-transformers.

        structure: needed only if the folder does not state it, see `CrossEncoderRecipe`.
        score_token, pooling: replace the folder's values. The default score token of an
            encoder-decoder is the paper's, "<extra_id_10>"; an encoder-only T5 pools "cls" or
            "mean".
        max_length: limit for a pair in tokens, special tokens included; by default at most 512.
        options: as in `Encoder.from_pretrained`.

        Raises CheckpointError for a folder that is missing, damaged, another system's or without a
        score; ValueError for a setting that does not fit the model.
        """
        found = found_model(model, options)
        folder = found.folder.resolve()
        recipe = read_cross_encoder_recipe(
            folder,
            name=found.name,
            structure=structure,
            score_token=score_token,
            pooling=pooling,
            max_tokens=max_length,
        )
        # A folder may be opened with two structures; loading refuses the wrong one.
        key = LoadKey.of(folder, options, system=f"rankt5 {recipe.structure}")
        return cls(key, acquire(key, partial(_load, recipe=recipe)), recipe, found.name)

    def save(self, folder: str | Path) -> Path:
        """Write model and recipe; sentence-transformers' `CrossEncoder` can open a BERT."""
        loaded = self.loaded
        return loaded.worker.run(
            lambda: save_cross_encoder(folder, loaded.model, loaded.tokenizer, self.recipe)
        )


_NO_SCORE = " to read the score off; name one that it has and never uses as score_token"

RankT5 = CrossEncoder
"""The former name of `CrossEncoder`, kept for one release."""


def _start_id(config: Any, tokenizer: PreTrainedTokenizerBase) -> int:
    """The id of the decoder's first token."""
    start = config.decoder_start_token_id
    if start is None:
        return pad_id(tokenizer)
    if not isinstance(start, int) or start < 0:
        raise CheckpointError(f"decoder_start_token_id is {str(start)[:80]}, which is no token")
    return start


def _usage(pairs: Sequence[Tokens]) -> PromptUsage:
    return PromptUsage(
        documents=len(pairs),
        documents_cut=sum(pair.cut for pair in pairs),
        tokens=sum(len(pair.ids) for pair in pairs),
    )


def _load(key: LoadKey, *, recipe: CrossEncoderRecipe) -> LoadedCrossEncoder:
    tokenizer = load_tokenizer(key.folder)
    model = load_cross_encoder(
        key.folder, recipe, dtype=key.dtype, attn_implementation=key.attn_implementation
    )
    plain = plain_tokenizer(tokenizer)
    check_ids(tokenizer, plain, model, pairs=recipe.input == "segments")
    digest = weights_digest(model, pooler=True)
    model = placed(model, key)
    pairs = PairModel(model, tokenizer, recipe, plain=plain)
    with trying(key.folder):
        batch = pairs.tokenizer.collate(pairs.tokenizer.pairs("a", ["a"], least=0))
        pairs.read(model, {name: part.to(key.device) for name, part in batch.items()})
    return LoadedCrossEncoder(
        model=model,
        tokenizer=tokenizer,
        plain=plain,
        digest=digest,
        worker=Worker(str(key.device), key.threads),
    )
