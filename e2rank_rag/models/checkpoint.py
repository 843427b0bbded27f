"""Model folders: where they are, what they say about encoding, reading and writing them.

A folder says how it encodes in `e2rank.json`, or in the sentence-transformers layout; for the
released E2Rank models, which say it nowhere, the settings are built in. Anything else must be
stated by the caller: nothing is guessed.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import torch
from pydantic import BaseModel, ValidationError
from torch import nn
from transformers import (
    AutoModel,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from e2rank_rag.errors import CheckpointError
from e2rank_rag.models.adapter import ADAPTER_FILES, copy_adapter
from e2rank_rag.models.families import positions
from e2rank_rag.models.folder_check import (
    COMPUTED,
    building,
    check_config,
    inside,
    read_json,
    weight_files,
    weight_shapes,
)
from e2rank_rag.models.folder_write import new_files, refuse_adapted
from e2rank_rag.models.model_config import read_config, write_json
from e2rank_rag.models.names import find_base, name_beside
from e2rank_rag.models.sentence_transformers_layout import (
    sentence_transformers_files,
    sentence_transformers_recipe,
    transformer_folder,
)
from e2rank_rag.models.tokenizer_check import check_tokenizer, check_tokenizer_files
from e2rank_rag.prompts import E2RANK, Prompts, SpanListwise
from e2rank_rag.recipe import (
    ADAPTER_FOLDER,
    ENCODER_FOLDER,
    AdapterOf,
    EncoderOf,
    ListwiseBudget,
    Pooling,
    Recipe,
    ResRankRecipe,
    System,
)
from e2rank_rag.tokenization import special_frame

if TYPE_CHECKING:
    from peft import PeftModel

logger = logging.getLogger(__name__)

RECIPE_FILE = "e2rank.json"

RELEASED = {
    f"Alibaba-NLP/E2Rank-{size}{variant}"
    for size in ("0.6B", "4B", "8B")
    for variant in ("", "-Embedding-Only")
}
"""Hub ids whose folders say nothing about pooling and prompts; the paper and its code do."""

QWEN3_END = "<|endoftext|>"

# all-MiniLM-L6-v2 without training, on nfcorpus dev and bioasq dev; see docs/how-it-works.md.
_SHORT_BUDGET = {"depth": 5, "document_tokens": 80}
_SPAN_QUERY_WEIGHT = 0.5


def read_recipe(
    folder: Path,
    *,
    name: str,
    pooling: Pooling | None = None,
    prompts: Prompts | None = None,
    said: Recipe | None = None,
) -> Recipe:
    """What the folder says about encoding, with what the caller states in its place.

    said: what a ResRank says of this folder, its encoder's.

    Raises CheckpointError where neither says it, or the folder asks for what is not supported.
    """
    if pooling is not None and pooling not in get_args(Pooling):
        raise ValueError(f"pooling must be one of {list(get_args(Pooling))}, got {pooling!r}")
    if said is None and (folder / RECIPE_FILE).is_file():
        said = read_recipe_file(folder / RECIPE_FILE, Recipe)
    if said is not None:
        changes = {"pooling": pooling, "prompts": prompts}
        return said.model_copy(update={k: v for k, v in changes.items() if v is not None})
    weights = transformer_folder(folder)
    config, tokenizer = read_config(weights), load_tokenizer(weights)
    if pooling is not None and prompts is not None:
        stated = _stated_recipe(pooling, prompts, config, tokenizer)
    elif (folder / "modules.json").is_file():
        stated = sentence_transformers_recipe(folder, config, tokenizer, prompts=prompts)
        changes = {"pooling": pooling, "prompts": prompts}
        stated.update({k: v for k, v in changes.items() if v is not None})
    elif name in RELEASED:
        stated = _stated_recipe("last", E2RANK, config, tokenizer)
    else:
        raise CheckpointError(
            f"{name} says nowhere how it encodes ({RECIPE_FILE} or modules.json); state it: "
            'pooling="last", prompts="e2rank" for Qwen3 models, or pooling="mean" (or "cls") with '
            'prompts="plain" or a Prompts record for BERT-like ones'
        )
    prompts = stated["prompts"]
    budget = _listwise_budget(prompts, positions(config), stated["document_tokens"])
    weight = _SPAN_QUERY_WEIGHT if isinstance(prompts.listwise, SpanListwise) else 0.0
    try:
        return Recipe(**stated, listwise=budget, query_weight=weight)
    except ValidationError as error:
        raise CheckpointError(f"{name} says of encoding what cannot be: {error}") from error


def read_system(folder: Path) -> System | None:
    """What the folder's `e2rank.json` says it is; None without one."""
    path = folder / RECIPE_FILE
    if not path.is_file():
        return None
    stated = read_json(path)
    system = stated.get("system", "e2rank") if isinstance(stated, dict) else stated
    if system not in get_args(System):
        raise CheckpointError(f"{path}: system is {system!r}, not one of {list(get_args(System))}")
    found: System = system
    return found


def encoder_folder(
    folder: Path, *, local_files_only: bool = False
) -> tuple[Path, EncoderOf | None]:
    """Where the encoder is: the folder itself, or elsewhere, as a ResRank says.

    Raises CheckpointError for a folder that has no encoder.
    """
    system = read_system(folder)
    if system == "rankt5":
        raise CheckpointError(
            f"{folder} holds a RankT5, which scores pairs and has no vectors: name the model of "
            "the index here, and this one as the reranker"
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


def model_folders(
    folder: Path, recipe: Recipe, *, local_files_only: bool = False
) -> tuple[Path, Path | None]:
    """Where the weights are, and where the listwise adapter is if the model has one."""
    if recipe.adapter is None:
        return transformer_folder(folder), None
    base = recipe.adapter.base
    adapter = inside(folder, ADAPTER_FOLDER)
    if base == ".":
        return folder, adapter
    weights = find_base(base, folder, local_files_only=local_files_only).resolve()
    return transformer_folder(weights), adapter


_PROBE = "a \U000e0001 \ua66e \U0002a6a5"
"""A text of a letter, and of characters that hardly any tokenizer knows."""


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """CheckpointError for one that cannot be read, or asks for more than a table of pieces."""
    check_config(folder)
    try:
        check_tokenizer_files(folder)
    except CheckpointError as error:
        raise CheckpointError(f"the tokenizer in {folder} cannot be read: {error}") from None
    # Stated, because a tokenizer_config.json may name another file.
    file = folder / "tokenizer.json"
    stated = {"tokenizer_file": str(file)} if file.is_file() else {}
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True, **stated
        )
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            raise TypeError(f"it is a {type(tokenizer).__name__}")
        tokenizer(_PROBE)
        tokenizer(_PROBE, _PROBE)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of the tokenizers library is no Exception
        raise CheckpointError(f"the tokenizer in {folder} cannot be read: {error}") from error
    if not stated and tokenizer.is_fast:  # made of older files, which hold as much
        check_tokenizer(json.loads(tokenizer.backend_tokenizer.to_str()), source=folder)
    return tokenizer


def load_transformer(
    folder: Path, *, dtype: torch.dtype, attn_implementation: str | None = None
) -> PreTrainedModel:
    """The transformer without its head, on the CPU, in evaluation mode. safetensors only.

    Raises CheckpointError for missing, foreign or incomplete weights; a pooler may be missing,
    since nothing here reads it.
    """
    config = read_config(folder)
    if config.is_encoder_decoder:
        raise CheckpointError(
            f"{folder} is an encoder-decoder ({config.model_type}), which gives no vector of a text"
        )
    config.use_cache = False
    transformer, missing = load_weights(
        folder, AutoModel, config, dtype=dtype, attn_implementation=attn_implementation
    )
    missing = [key for key in missing if "pooler" not in key]
    if missing:
        raise CheckpointError(
            f"the weights in {folder} lack {len(missing)} tensors of {type(transformer).__name__}, "
            f"among them {missing[0]}"
        )
    return transformer


def load_weights(
    folder: Path,
    kind: Any,
    config: PretrainedConfig,
    *,
    dtype: torch.dtype,
    attn_implementation: str | None,
) -> tuple[PreTrainedModel, list[str]]:
    """A model of a class of transformers, in evaluation mode, and which of its tensors the files
    lack, sorted. safetensors only; CheckpointError for files that cannot be read."""
    check_config(folder)
    own = getattr(config, "auto_map", None) or {}
    if any(str(name).startswith("AutoModel") for name in own):
        logger.warning(
            "%s names code of its own (auto_map), which is never run: the model is opened as the "
            "%s of transformers, and its numbers may not be those that its author had",
            folder / "config.json",
            config.model_type,
        )
    shapes = weight_shapes(weight_files(folder))
    try:
        with quiet_transformers(), building(shapes, source=folder):
            model, report = kind.from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                attn_implementation=attn_implementation,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
            )
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"the weights in {folder} cannot be read: {error}") from error
    unread = _unread(model, report["unexpected_keys"])
    if unread:
        raise CheckpointError(
            f"the weights in {folder} hold {len(unread)} tensors that the {type(model).__name__} "
            f"of its config.json has no place for, among them {unread[0]}"
        )
    return model.eval(), sorted(report["missing_keys"])


def _unread(model: PreTrainedModel, unexpected: Iterable[str]) -> list[str]:
    """Tensors without a place in the parts that the model has; heads that it lacks may be there."""
    prefix = f"{model.base_model_prefix}."
    names = (name for name, _ in model.named_modules() if name)
    parts = {name.removeprefix(prefix).split(".")[0] for name in (*names, *model.state_dict())}
    return sorted(
        name
        for name in unexpected
        if name.removeprefix(prefix).split(".")[0] in parts
        and "pooler" not in name
        and not name.endswith(COMPUTED)
    )


def weights_digest(transformer: nn.Module, *, pooler: bool = False) -> str:
    """Names the weights: the same for a copy, a resaved folder, and in float32 or bfloat16.

    Hashes 4096 evenly spread values of each tensor, rounded to bfloat16: any training step moves
    many of those, and an 8B model has 16 GB to read.

    pooler: whether something reads it; it is left out otherwise.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(transformer.state_dict().items()):
        if "pooler" in name and not pooler:
            continue
        flat = tensor.reshape(-1)
        places = torch.linspace(0, len(flat) - 1, min(len(flat), 4096), dtype=torch.float64)
        values = flat[places.round().long()].to(torch.bfloat16).view(torch.int16)
        digest.update(f"{name} {list(tensor.shape)}".encode())
        digest.update(values.cpu().numpy().tobytes())
    return digest.hexdigest()


def save_checkpoint(
    folder: str | Path,
    transformer: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    recipe: Recipe,
    *,
    adapter: Path | None = None,
) -> Path:
    """Write a folder that this library and sentence-transformers open with the same vectors.

    sentence-transformers knows no listwise prompt and no truncate_dim: only e2rank.json has those.
    adapter: folder of the listwise adapter, copied beside the weights.
    """
    refuse_adapted(folder)
    if adapter is not None and recipe.adapter is not None:
        here = recipe.adapter.model_copy(update={"base": "."})
        recipe = recipe.model_copy(update={"adapter": here})
    with new_files(folder) as new:
        if adapter is not None and recipe.adapter is not None:
            copy_adapter(adapter, new / ADAPTER_FOLDER)
        with quiet_transformers():
            transformer.save_pretrained(new)
        tokenizer.save_pretrained(new)
        if recipe.end_token is not None:
            _append_end_token(new / "tokenizer.json", tokenizer, recipe.end_token)
        files = {
            RECIPE_FILE: recipe.model_dump(mode="json"),
            **sentence_transformers_files(recipe, transformer.config.hidden_size),
        }
        for name, content in files.items():
            path = new / name
            path.parent.mkdir(exist_ok=True)
            write_json(path, content)
    return Path(folder)


def save_adapter(
    folder: str | Path, adapted: PeftModel, recipe: Recipe, *, base: str, digest: str
) -> Path:
    """Write a listwise adapter beside its recipe; the weights of the base are not copied.

    base: its name, see `names.find_model`; digest: see `recipe.AdapterOf`.
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
    """Let the tokenizer add the end token by itself, behind whatever it truncates."""
    state = json.loads(path.read_text(encoding="utf-8"))
    prefix, suffix = special_frame(tokenizer, end_token)
    names = {number: tokenizer.convert_ids_to_tokens(number) for number in (*prefix, *suffix)}
    before, after = (
        [{"SpecialToken": {"id": names[number], "type_id": 0}} for number in side]
        for side in (prefix, suffix)
    )
    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    state["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [*before, first, *after],
        "pair": [*before, first, second, *after],
        "special_tokens": {
            name: {"id": name, "ids": [number], "tokens": [name]} for number, name in names.items()
        },
    }
    path.write_text(json.dumps(state, ensure_ascii=False), encoding="utf-8")


R = TypeVar("R", bound=BaseModel)


def read_recipe_file(path: Path, kind: type[R]) -> R:
    """CheckpointError for one of another version."""
    try:
        return kind.model_validate(read_json(path))
    except (ValidationError, CheckpointError) as error:
        raise CheckpointError(f"{path} is not a recipe this version reads: {error}") from error


def _stated_recipe(
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


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No loading bar and no advice: what matters is raised as an error here."""
    level = transformers_logging.get_verbosity()
    bar = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bar:
            transformers_logging.enable_progress_bar()
