"""Reads and writes folders of E2Rank models.

The recipe is in a folder's `e2rank.json` or in the files of sentence-transformers. The released
E2Rank models have neither, so their recipe is built in. For any other folder the caller states
pooling and prompts; nothing is guessed.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from pydantic import ValidationError
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from e2rank_rag.errors import CheckpointError
from e2rank_rag.models.adapter import ADAPTER_FILES, copy_adapter
from e2rank_rag.models.config import positions, read_config
from e2rank_rag.models.files import inside, new_files, read_json, write_json
from e2rank_rag.models.folders import (
    RECIPE_FILE,
    find_base,
    name_beside,
    read_recipe_file,
    read_system,
)
from e2rank_rag.models.sentence_transformers_folder import (
    sentence_transformers_files,
    sentence_transformers_recipe,
    transformer_folder,
)
from e2rank_rag.models.tokenizer_files import load_tokenizer
from e2rank_rag.models.weights import new_model
from e2rank_rag.prompts import E2RANK, Prompts, SpanListwise
from e2rank_rag.recipe import AdapterOf, EncoderOf, ListwiseBudget, Pooling, Recipe, ResRankRecipe
from e2rank_rag.tokenization import special_frame

if TYPE_CHECKING:
    from peft import PeftModel

ADAPTER_FOLDER = "listwise_adapter"
ENCODER_FOLDER = "encoder"
"""Folder of a ResRank's encoder, where its recipe names the base "."."""

RELEASED = {
    f"Alibaba-NLP/E2Rank-{size}{variant}"
    for size in ("0.6B", "4B", "8B")
    for variant in ("", "-Embedding-Only")
}
"""Hub ids of the released models, whose pooling and prompts are those of the paper's code."""

QWEN3_END = "<|endoftext|>"

# Chosen for all-MiniLM-L6-v2 without training on nfcorpus dev and bioasq dev; see
# docs/experiments.md.
_SHORT_BUDGET = {"depth": 5, "document_tokens": 80}
_SPAN_QUERY_WEIGHT = 0.5


def read_recipe(
    folder: Path,
    name: str,
    pooling: Pooling | None = None,
    *,
    prompts: Prompts | None = None,
    stored: Recipe | None = None,
) -> Recipe:
    """The recipe of a folder; pooling and prompts given by the caller replace the folder's.

    name: the caller's name for the model. stored: a recipe to use instead of the folder's; a
    ResRank keeps the one of its encoder.

    Raises CheckpointError if neither folder nor caller states pooling and prompts, or if the folder
    states something unsupported.
    """
    if pooling is not None and pooling not in get_args(Pooling):
        raise ValueError(f"pooling must be one of {list(get_args(Pooling))}, got {pooling!r}")
    given = {"pooling": pooling, "prompts": prompts}
    given = {key: value for key, value in given.items() if value is not None}
    if stored is None and (folder / RECIPE_FILE).is_file():
        stored = read_recipe_file(folder / RECIPE_FILE, Recipe)
    if stored is not None:
        return stored.model_copy(update=given)
    weights = transformer_folder(folder)
    config, tokenizer = read_config(weights), load_tokenizer(weights)
    if pooling is not None and prompts is not None:
        fields = _recipe_fields(pooling, prompts, config, tokenizer)
    elif (folder / "modules.json").is_file():
        fields = sentence_transformers_recipe(folder, config, tokenizer, prompts=prompts)
        fields.update(given)
    elif name in RELEASED:
        fields = _recipe_fields("last", E2RANK, config, tokenizer)
    else:
        raise CheckpointError(
            f"{name} says nowhere how it encodes ({RECIPE_FILE} or modules.json); state it: "
            'pooling="last", prompts="e2rank" for Qwen3 models, or pooling="mean" (or "cls") with '
            'prompts="plain" or a Prompts record for BERT-like ones'
        )
    prompts = fields["prompts"]
    budget = _listwise_budget(prompts, positions(config), fields["document_tokens"])
    weight = _SPAN_QUERY_WEIGHT if isinstance(prompts.listwise, SpanListwise) else 0.0
    try:
        return Recipe(**fields, listwise=budget, query_weight=weight)
    except ValidationError as error:
        raise CheckpointError(f"{name} has an impossible recipe: {error}") from error


def encoder_folder(
    folder: Path, *, local_files_only: bool = False
) -> tuple[Path, EncoderOf | None]:
    """The encoder's folder, and for a ResRank the part of its recipe about the encoder.

    Raises CheckpointError for a cross-encoder's folder.
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


def model_folders(
    folder: Path, recipe: Recipe, local_files_only: bool = False
) -> tuple[Path, Path | None]:
    """The folder of the weights, and the folder of the listwise adapter, None without one."""
    if recipe.adapter is None:
        return transformer_folder(folder), None
    base = recipe.adapter.base
    adapter = inside(folder, ADAPTER_FOLDER)
    if base == ".":
        return folder, adapter
    weights = find_base(base, folder, local_files_only=local_files_only).resolve()
    return transformer_folder(weights), adapter


def save_checkpoint(
    folder: str | Path,
    transformer: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    recipe: Recipe,
    *,
    adapter: Path | None = None,
) -> Path:
    """Write a folder that this library and sentence-transformers open with the same vectors.

    Listwise prompts and truncate_dim are in e2rank.json only; sentence-transformers has neither.
    adapter: folder of the listwise adapter, which is copied beside the weights.
    """
    if adapter is not None and recipe.adapter is not None:
        here = recipe.adapter.model_copy(update={"base": "."})
        recipe = recipe.model_copy(update={"adapter": here})
    with new_model(folder, transformer, tokenizer, recipe) as new:
        if adapter is not None and recipe.adapter is not None:
            copy_adapter(adapter, new / ADAPTER_FOLDER)
        if recipe.end_token is not None:
            _append_end_token(new / "tokenizer.json", tokenizer, recipe.end_token)
        files = sentence_transformers_files(recipe, transformer.config.hidden_size)
        for name, content in files.items():
            path = new / name
            path.parent.mkdir(exist_ok=True)
            write_json(path, content)
    return Path(folder)


def save_adapter(
    folder: str | Path, adapted: PeftModel, recipe: Recipe, *, base: str, digest: str
) -> Path:
    """Write a listwise adapter beside its recipe; the weights of the base are not copied.

    base: the base's name from `find_model`. digest: the digest of the base's weights.
    """
    base = name_beside(base, Path(folder))
    with new_files(folder) as new:
        target = new / ADAPTER_FOLDER
        adapted.save_pretrained(str(target))
        (target / "README.md").unlink(missing_ok=True)  # an empty model card
        config = read_json(target / ADAPTER_FILES[0])
        config["base_model_name_or_path"] = base
        write_json(target / ADAPTER_FILES[0], config)
        recipe = recipe.model_copy(update={"adapter": AdapterOf(base=base, digest=digest)})
        write_json(new / RECIPE_FILE, recipe.model_dump(mode="json"))
    return Path(folder)


def _append_end_token(path: Path, tokenizer: PreTrainedTokenizerBase, end_token: str) -> None:
    """Let the saved tokenizer add the end token itself, after it has truncated the text."""
    prefix, suffix = special_frame(tokenizer, end_token)
    names = {number: tokenizer.convert_ids_to_tokens(number) for number in (*prefix, *suffix)}
    before, after = ([f"{names[number]}:0" for number in side] for side in (prefix, suffix))
    saved = Tokenizer.from_file(str(path))
    saved.post_processor = TemplateProcessing(
        single=[*before, "$A:0", *after],
        pair=[*before, "$A:0", "$B:0", *after],
        special_tokens=[(name, number) for number, name in names.items()],
    )
    saved.save(str(path))


def _recipe_fields(
    pooling: Pooling, prompts: Prompts, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    limit = positions(config)
    qwen3 = pooling == "last" and QWEN3_END in tokenizer.get_vocab()
    return {
        "pooling": pooling,
        "prompts": prompts,
        "end_token": QWEN3_END if qwen3 else None,
        "query_tokens": min(512, limit),
        "document_tokens": min(1024, limit),
    }


def _listwise_budget(prompts: Prompts, limit: int, document_tokens: int) -> ListwiseBudget:
    if isinstance(prompts.listwise, SpanListwise) and limit <= 512:
        return ListwiseBudget(**_SHORT_BUDGET, max_tokens=limit)
    return ListwiseBudget(max_tokens=min(32768, limit), document_tokens=document_tokens)
