"""RankT5: a score for each pair of a query and a document (arXiv 2210.10634).

ranker = CrossEncoder.from_pretrained("cross-encoder/ms-marco-MiniLM-L6-v2")
(scores,), usage = ranker.score(["where is Paris?"], [["Paris is in France.", "Cats purr."]])
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from e2rank_rag.errors import CheckpointError
from e2rank_rag.models.cpu import use_onednn
from e2rank_rag.models.cross_encoder_folder import (
    load_cross_encoder,
    pair_logits,
    read_cross_encoder_recipe,
    reads_segments,
    save_cross_encoder,
)
from e2rank_rag.models.folders import find_model
from e2rank_rag.models.runtime import (
    Dtype,
    LoadKey,
    ModelUser,
    Shared,
    Worker,
    acquire,
    batch_tokens,
    not_finite,
    stamp,
    torch_device,
    torch_dtype,
    trying,
)
from e2rank_rag.models.tokenizer_files import check_ids, check_special_ids, load_tokenizer
from e2rank_rag.models.weights import weights_digest
from e2rank_rag.pair_tokenization import CrossEncoderRecipe, PairPooling, PairTokenizer, Structure
from e2rank_rag.tokenization import (
    MIN_SHARE,
    Tokens,
    batches_by_length,
    checked_texts,
    pad_id,
    plain_tokenizer,
    token_id,
)
from e2rank_rag.types import PairScores, PromptUsage


@dataclass(kw_only=True)
class LoadedCrossEncoder(Shared):
    """What a ranker needs."""

    model: PreTrainedModel


class CrossEncoder(ModelUser[LoadedCrossEncoder]):
    """A ranker of pairs with its recipe. Light: rankers of one model share weights and thread.

    Every method may be called from any thread; `run_async` never blocks the event loop. Scores are
    unbounded numbers that order the documents of one query, and the same for a pair alone and in
    any batch (to 1e-5 in float32; in bfloat16 they have three digits, so some are equal). Close it,
    or use it as a context manager, to free the model.
    """

    def __init__(
        self, key: LoadKey, model: LoadedCrossEncoder, recipe: CrossEncoderRecipe, name: str
    ) -> None:
        super().__init__(key, model, name=name)
        self.recipe = recipe
        self._scorer = model.worker.run(
            lambda: PairModel(model.model, model.tokenizer, recipe, plain=model.plain)
        )

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        *,
        structure: Structure | None = None,
        score_token: str | None = None,
        pooling: PairPooling | None = None,
        max_length: int | None = None,
        dtype: Dtype | None = None,
        device: str | None = None,
        attn_implementation: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
    ) -> Self:
        """Open a folder or a hub id: one that stage `rankt5` has written, a T5 or Flan-T5 as
        encoder-decoder (so are the released RankT5 weights, once converted to safetensors), or a
        cross-encoder of one score, such as those of sentence-transformers.

        structure: only where the folder does not say, see `CrossEncoderRecipe`.
        score_token, pooling: in place of what the folder says. The paper's score token
            "<extra_id_10>" is the default of an encoder-decoder.
        max_length: limit for a pair in tokens, special ones included; documents are cut there. At
            most 512 by default.
        dtype, device: as in `Encoder.from_pretrained`.

        Raises CheckpointError when the folder is missing, damaged, another system's, or has nothing
        that gives a score; ValueError for a setting that does not fit it.
        """
        found = find_model(model, revision=revision, local_files_only=local_files_only)
        folder = found.folder.resolve()
        recipe = read_cross_encoder_recipe(
            folder,
            name=found.name,
            structure=structure,
            score_token=score_token,
            pooling=pooling,
            max_tokens=max_length,
        )
        where = torch_device(device)
        key = LoadKey(
            folder,
            stamp(folder),
            torch_dtype(dtype, where),
            where,
            attn_implementation,
            # Another structure of the same folder is refused only where it is loaded.
            system=f"rankt5 {recipe.structure}",
        )
        return cls(key, acquire(key, partial(_load, recipe=recipe)), recipe, found.name)

    def score(
        self,
        queries: Sequence[str],
        documents: Sequence[Sequence[str]],
        *,
        least: int = MIN_SHARE,
    ) -> PairScores:
        """A score for each query with each of its documents; higher is better.

        Over-long documents are cut at `recipe.max_tokens` with their query, which never is; the
        usage counts them. least: tokens that a query must leave for a document.

        Raises ValueError for an empty query, one that leaves less, and another number of lists than
        queries; FloatingPointError for scores that are not finite.
        """
        asked = checked_texts(queries, "query")
        if len(documents) != len(asked):
            raise ValueError(f"{len(asked)} queries came with {len(documents)} lists of documents")
        lists = [checked_texts(each, "document") for each in documents]
        loaded, scorer = self.loaded, self._scorer

        def scored() -> PairScores:
            with torch.inference_mode():
                return scorer.score(
                    asked,
                    lists,
                    budget=batch_tokens(self._key.device),
                    least=least,
                    before_batch=loaded.worker.check_cancelled,
                )

        found = loaded.worker.run(scored)
        if not all(np.isfinite(row).all() for row in found.scores):
            raise not_finite(f"{self.name} gave scores", self._key.dtype)
        return found

    def room(self, query: str) -> int:
        """Tokens that a query leaves for a document; ValueError for an empty query."""
        (query,) = checked_texts([query], "query")
        loaded, scorer = self.loaded, self._scorer
        return loaded.worker.run(lambda: scorer.tokenizer.room(query))

    def save(self, folder: str | Path) -> Path:
        """Write model and recipe; a BERT is opened by sentence-transformers' `CrossEncoder` too."""
        loaded = self.loaded
        return loaded.worker.run(
            lambda: save_cross_encoder(folder, loaded.model, loaded.tokenizer, self.recipe)
        )

    def _drop(self) -> None:
        self._scorer = None  # type: ignore[assignment]


RankT5 = CrossEncoder
"""The former name of `CrossEncoder`, kept for one release."""


class PairModel:
    """Texts to scores with a model as it is, in training too. Not thread-safe.

    model: as `rankt5_checkpoint.load_cross_encoder` gives it; may be wrapped, as by peft.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        recipe: CrossEncoderRecipe,
        *,
        plain: Tokenizer | None = None,
    ) -> None:
        self.model = model
        self.recipe = recipe
        config: Any = model.config
        self.score_id: int | None = None
        self.start_id: int | None = None
        if recipe.score_token is not None:
            self.score_id = _score_id(tokenizer, recipe.score_token)
            check_special_ids([self.score_id], model)
            self.start_id = _start_id(config, tokenizer)
            check_special_ids([self.start_id], model)
        self.tokenizer = PairTokenizer(
            tokenizer,
            plain_tokenizer(tokenizer) if plain is None else plain,
            recipe,
            segments=reads_segments(config),
            padding=config.pad_token_id if recipe.input == "segments" else None,
        )

    def score(
        self,
        queries: Sequence[str],
        documents: Sequence[Sequence[str]],
        *,
        budget: int,
        least: int = MIN_SHARE,
        before_batch: Callable[[], None] = lambda: None,
    ) -> PairScores:
        """See `RankT5.score`; budget: tokens of one forward pass, padding included.

        Without a gradient, which the caller turns off.
        """
        lists = [
            self.tokenizer.pairs(query, texts, least=least)
            for query, texts in zip(queries, documents, strict=True)
        ]
        pairs = [pair for each in lists for pair in each]
        scores = np.empty(len(pairs), dtype=np.float32)
        device = next(self.model.parameters()).device
        for rows in batches_by_length([len(pair.ids) for pair in pairs], budget):
            before_batch()
            batch = self.tokenizer.collate([pairs[row] for row in rows])
            found = self.read(self.model, {name: part.to(device) for name, part in batch.items()})
            scores[rows] = found.cpu().numpy()
        ends = np.cumsum([len(each) for each in lists])[:-1]
        split = np.split(scores, ends) if lists else []
        return PairScores(split, tuple(map(_usage, lists)))

    def read(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """Scores of a batch of `PairTokenizer.collate`, float32 [B], by this model."""
        return pair_logits(model, batch, self.score_id, self.start_id)


def _score_id(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    try:
        return token_id(tokenizer, token)
    except CheckpointError:
        raise CheckpointError(
            f"the tokenizer has no token {token!r} to read the score off; name one that it has and "
            "never uses as score_token"
        ) from None


def _start_id(config: Any, tokenizer: PreTrainedTokenizerBase) -> int:
    """Of the decoder's first token."""
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
    to_device: Callable[..., PreTrainedModel] = model.to
    model = to_device(device=key.device)
    if key.device.type == "cpu" and key.dtype == torch.float32:
        use_onednn(model)
    scorer = PairModel(model, tokenizer, recipe, plain=plain)
    with trying(key.folder):
        scorer.score(["a"], [["a"]], budget=recipe.max_tokens, least=0)
    return LoadedCrossEncoder(
        model=model,
        tokenizer=tokenizer,
        plain=plain,
        digest=digest,
        worker=Worker(str(key.device)),
    )
