"""Reads and writes folders of cross-encoders: recipe and weights.

There are three kinds: a T5 encoder-decoder, a T5 encoder with a dense layer, and any sequence
classifier with one label, such as the cross-encoders of sentence-transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    T5Config,
    T5EncoderModel,
)
from transformers.modeling_outputs import SequenceClassifierOutput

from e2rank_rag.errors import CheckpointError
from e2rank_rag.models.config import positions, read_config
from e2rank_rag.models.e2rank import pool
from e2rank_rag.models.files import read_json, write_json
from e2rank_rag.models.folders import RECIPE_FILE, T5_FAMILY, read_recipe_file, read_system
from e2rank_rag.models.tokenizer_files import load_tokenizer
from e2rank_rag.models.weights import load_weights, new_model
from e2rank_rag.recipe import CrossEncoderRecipe, Structure

RAW_SCORES = {"activation_fn": "torch.nn.modules.linear.Identity"}
"""Without it, sentence-transformers would put a sigmoid on the scores."""

OWN_HEAD = "score"
"""The dense layer of an encoder-only T5."""

_DEFAULT_TOKENS = 512
_NO_LIMIT = 1 << 20


class T5Ranker(T5EncoderModel):
    """A T5 encoder whose pooled vector a dense layer turns into one score."""

    def __init__(self, config: T5Config) -> None:
        super().__init__(config)
        self.score = nn.Linear(config.d_model, 1)
        self.post_init()

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, pool_slots: Tensor
    ) -> SequenceClassifierOutput:
        """int [B, L] three times -> logits [B, 1]; pool_slots as in `e2rank.pool`."""
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        vectors = pool(hidden, pool_slots)[:, 0].to(hidden.dtype)
        return SequenceClassifierOutput(logits=self.score(vectors))


def read_cross_encoder_recipe(
    folder: Path,
    *,
    name: str,
    structure: Structure | None = None,
    score_token: str | None = None,
    pooling: str | None = None,
    max_tokens: int | None = None,
    encoders_too: bool = False,
) -> CrossEncoderRecipe:
    """The recipe of a folder, with the caller's settings instead of its own.

    encoders_too: for training, also accept an E2Rank folder, and read only its transformer.

    Raises CheckpointError for a folder of another system, and ValueError for settings that do not
    fit the model.
    """
    given = {
        "structure": structure,
        "score_token": score_token,
        "pooling": pooling,
        "max_tokens": max_tokens,
    }
    given = {key: value for key, value in given.items() if value is not None}
    system = read_system(folder)
    config = read_config(folder)
    if system is None or (encoders_too and system == "e2rank"):
        fields = _fields(folder, config)
        if structure == "encoder-decoder" != fields["structure"]:
            raise CheckpointError(f"{name} has no decoder: {config.model_type} is encoder-only")
    elif system == "rankt5":
        fields = dict(read_recipe_file(folder / RECIPE_FILE, CrossEncoderRecipe))
        if structure not in (None, fields["structure"]):
            raise CheckpointError(f"{name} is {fields['structure']}, not {structure}")
    else:
        raise CheckpointError(
            f"{name} is a model of the system {system!r}, as its {RECIPE_FILE} says, and not a "
            "cross-encoder; train one from its base: stage rankt5"
        )
    try:
        recipe = CrossEncoderRecipe.model_validate({**fields, **given})
    except ValidationError as error:
        reasons = "; ".join(each["msg"] for each in error.errors())
        raise ValueError(f"{name}: {reasons}") from error
    limit = position_limit(config)
    if recipe.max_tokens > limit:
        kind = CheckpointError if max_tokens is None else ValueError
        raise kind(f"max_tokens is {recipe.max_tokens}, but {name} can place {limit} tokens only")
    return recipe


def _fields(folder: Path, config: PretrainedConfig) -> dict[str, Any]:
    """The recipe of a folder that states none."""
    longest = min(_DEFAULT_TOKENS, longest_pair(config, load_tokenizer(folder)))
    if config.model_type not in T5_FAMILY:
        return {"structure": "encoder-only", "input": "segments", "max_tokens": longest}
    kinds = config.architectures or ["T5ForConditionalGeneration"]
    decoder = any("ConditionalGeneration" in kind or "LMHead" in kind for kind in kinds)
    structure = "encoder-decoder" if decoder else "encoder-only"
    return {"structure": structure, "input": "text", "max_tokens": longest}


def position_limit(config: PretrainedConfig) -> int:
    """How many tokens the model has positions for; a T5 has no limit."""
    return _NO_LIMIT if config.model_type in T5_FAMILY else positions(config)


def longest_pair(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    """The longest pair in tokens that model and tokenizer take; for a T5 its training length."""
    limit = _DEFAULT_TOKENS if config.model_type in T5_FAMILY else positions(config)
    return min(limit, tokenizer.model_max_length)


def reads_segments(config: PretrainedConfig) -> bool:
    """Whether the model has embeddings for more than one segment."""
    return int(getattr(config, "type_vocab_size", 0) or 0) > 1


def load_cross_encoder(
    folder: Path,
    recipe: CrossEncoderRecipe,
    *,
    dtype: torch.dtype,
    attn_implementation: str | None = None,
    fresh_head: bool = False,
) -> PreTrainedModel:
    """The model on the CPU, in evaluation mode, from safetensors.

    fresh_head: for training: if the folder has no head, draw one from torch's random state.

    Raises CheckpointError for weights that are missing, incomplete or another architecture's.
    """
    config = read_config(folder)
    kind = _model_class(config, recipe)
    if fresh_head and recipe.input == "segments":
        config.num_labels = 1
    model, missing = load_weights(
        folder, kind, config, dtype=dtype, attn_implementation=attn_implementation
    )
    if fresh_head:
        heads = (*head_modules(model), f"{model.base_model_prefix}.pooler")
        missing = [key for key in missing if not key.startswith(heads)]
    if missing:
        # An embedding model, for example, has no head, which would be filled with random numbers.
        raise CheckpointError(
            f"{folder} is no cross-encoder: it lacks {missing[0]} and "
            f"{len(missing) - 1} more tensors of {type(model).__name__}; train one: stage rankt5"
        )
    if recipe.input == "segments" and (config.pad_token_id is None or config.pad_token_id < 0):
        raise CheckpointError(
            f"{folder} is a {config.model_type} without a pad token, which reads one pair at a "
            "time: set pad_token_id in its config.json, or take a T5, or an encoder such as a BERT"
        )
    if recipe.input == "segments" and config.num_labels != 1:
        raise CheckpointError(
            f"{folder} gives {config.num_labels} numbers per pair; a cross-encoder with one score "
            "is needed"
        )
    return model


def _model_class(config: PretrainedConfig, recipe: CrossEncoderRecipe) -> Any:
    if recipe.input == "segments":
        return AutoModelForSequenceClassification
    if recipe.structure == "encoder-decoder":
        return AutoModelForSeq2SeqLM
    if config.model_type != "t5":
        raise CheckpointError(
            f"the encoder alone is read of T5 only, not of {config.model_type}; state "
            'structure="encoder-decoder"'
        )
    return T5Ranker


def head_modules(model: PreTrainedModel) -> list[str]:
    """Names of the layers that turn vectors into a score; empty for an encoder-decoder."""
    if isinstance(model, T5Ranker):
        return [OWN_HEAD]
    if model.config.is_encoder_decoder:
        return []
    return [
        name
        for name, part in model.named_children()
        if name != model.base_model_prefix and any(True for _ in part.parameters())
    ]


def pair_logits(
    model: nn.Module, batch: Mapping[str, Tensor], score_id: int | None, start_id: int | None
) -> Tensor:
    """The scores of a batch from `PairTokenizer.collate`: float32 [B].

    score_id, start_id: ids of the score token and of the decoder's first token; None without a
    decoder. The score of an encoder-decoder is the bare logit, without a softmax (RankT5, eq. 2).
    """
    if score_id is None or start_id is None:
        logits: Tensor = model(**batch).logits[:, 0]
        return logits.float()
    first = torch.full_like(batch["input_ids"][:, :1], start_id)
    logits = model(**batch, decoder_input_ids=first, use_cache=False).logits
    return logits[:, 0, score_id].float()


def save_cross_encoder(
    folder: str | Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    recipe: CrossEncoderRecipe,
) -> Path:
    """Write a folder that `CrossEncoder.from_pretrained` opens with the same scores.

    `sentence_transformers.CrossEncoder` opens it with the same scores if its input is segments.
    """
    with new_model(folder, model, tokenizer, recipe) as new:
        if recipe.input == "segments":
            limits: dict[str, Any] = {"model_max_length": recipe.max_tokens}
            if reads_segments(model.config):
                # Some tokenizers return segments only if this is set.
                limits["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
            for name, said in (
                ("config.json", {"sentence_transformers": RAW_SCORES}),
                ("tokenizer_config.json", limits),
            ):
                write_json(new / name, {**read_json(new / name), **said})
    return Path(folder)
