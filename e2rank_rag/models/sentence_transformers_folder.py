"""Reads and writes a recipe in the folder format of sentence-transformers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from e2rank_rag.errors import CheckpointError
from e2rank_rag.models.config import positions
from e2rank_rag.models.files import inside, read_json, read_object, unsupported
from e2rank_rag.prompts import E2RANK, ChatListwise, Prompts, SpanListwise
from e2rank_rag.recipe import Pooling, Recipe

_MODULES = ("Transformer", "Pooling", "Normalize")

_TRANSFORMER_FILES = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
"""Names of the file with the length limit, in sentence-transformers' order of search."""

_ARGUMENTS = ("model_args", "model_kwargs", "tokenizer_args", "processor_kwargs")

_READ_ELSEWHERE = ("max_seq_length", "do_lower_case", "unpad_inputs", *_ARGUMENTS)

_OLD_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""Pooling by the flag that older releases write for it."""

_DEFAULTS: Mapping[str, Any] = {
    "transformer_task": "feature-extraction",
    "module_output_name": "token_embeddings",
    "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
}


def sentence_transformers_files(recipe: Recipe, dimensions: int) -> dict[str, Any]:
    """The files that sentence-transformers reads a recipe from: content by file name."""
    pooling = {"last": "lasttoken"}.get(recipe.pooling, recipe.pooling)
    prefixes = {
        "query": recipe.prompts.query_text(""),
        "document": recipe.prompts.document_text(""),
    }
    return {
        "modules.json": [
            {
                "idx": index,
                "name": str(index),
                "path": "" if index == 0 else f"{index}_{module}",
                "type": f"sentence_transformers.models.{module}",
            }
            for index, module in enumerate(_MODULES)
        ],
        "sentence_bert_config.json": {
            "max_seq_length": recipe.document_tokens,
            "do_lower_case": False,
        },
        "config_sentence_transformers.json": {"prompts": prefixes, "similarity_fn_name": "cosine"},
        "1_Pooling/config.json": {
            "word_embedding_dimension": dimensions,
            **{flag: name == pooling for flag, name in _OLD_FLAGS.items()},
        },
        "2_Normalize/config.json": {},
    }


def transformer_folder(folder: Path) -> Path:
    """The folder of config, tokenizer and weights: the folder itself, or what modules.json names.

    A folder with an `e2rank.json` holds them itself.
    """
    if (folder / "e2rank.json").is_file() or not (folder / "modules.json").is_file():
        return folder
    name = read_modules(folder)[0]["path"]
    return inside(folder, name) if name else folder


def read_modules(folder: Path) -> list[dict[str, Any]]:
    """The modules of a model, the transformer first.

    CheckpointError for a file that lists no modules, and for modules that are not supported.
    """
    path = folder / "modules.json"
    modules = read_json(path)
    try:
        types = [str(module["type"]) for module in modules]
        parts = [inside(folder, module["path"]) for module in modules]
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} lists no modules: {error!r}") from error
    kinds = [kind.rsplit(".", 1)[-1] for kind in types]
    if kinds != [*_MODULES]:
        reason = (
            f"its layers after pooling ({', '.join(kinds[2:])}) are not supported"
            if set(kinds) - {*_MODULES}
            else "it does not normalise, so its scores are no cosines"
        )
        raise CheckpointError(
            f"{folder} is a sentence-transformers model of {' + '.join(kinds)}: {reason}; "
            "models of Transformer + Pooling + Normalize are"
        )
    for kind, module in zip(types, modules, strict=True):
        if not kind.startswith("sentence_transformers.") or module.get("kwargs"):
            raise CheckpointError(
                f"{path} has a module {kind} of its own, or arguments for it: only modules of "
                "sentence-transformers itself are supported, without arguments"
            )
    _refuse_others(parts[2] / "config.json", "module_input_name", "module_output_name")
    found: list[dict[str, Any]] = modules
    return found


def sentence_transformers_recipe(
    folder: Path,
    config: PretrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    prompts: Prompts | None = None,
) -> dict[str, Any]:
    """The fields of a recipe, as sentence-transformers reads them from the folder.

    prompts: instead of those in the folder. CheckpointError for settings that are not supported.
    """
    modules = read_modules(folder)
    pooling = _sentence_transformers_pooling(inside(folder, modules[1]["path"]) / "config.json")
    stated = read_object(folder / "config_sentence_transformers.json", default={})
    if stated.get("model_type") not in (None, "SentenceTransformer"):
        raise CheckpointError(
            f"{folder} is a {str(stated['model_type'])[:80]} of sentence-transformers, which is "
            "not supported: a SentenceTransformer is"
        )
    limit = min(positions(config), _stated_length(transformer_folder(folder), tokenizer))
    if prompts is None:
        texts = _stated_prompts(folder / "config_sentence_transformers.json", stated)
        prompts = _sentence_transformers_prompts(texts, pooling, tokenizer)
    recipe: dict[str, Any] = {
        "pooling": pooling,
        "prompts": prompts,
        "query_tokens": limit,
        "document_tokens": limit,
    }
    if stated.get("truncate_dim") is not None:
        recipe["truncate_dim"] = stated["truncate_dim"]
    return recipe


def _part(path: Path, content: Mapping[str, Any], key: str) -> dict[str, Any]:
    part = content.get(key) or {}
    if not isinstance(part, dict):
        raise CheckpointError(f"{path} says {key} = {str(part)[:80]!r}, not an object")
    return part


def _refuse_others(path: Path, *names: str) -> None:
    """CheckpointError for a module that reads or writes anything but the vector of a text."""
    content = read_object(path, default={})
    for name in names:
        if content.get(name) not in (None, "sentence_embedding"):
            raise unsupported(path, name, content[name])


def _stated_length(folder: Path, tokenizer: PreTrainedTokenizerBase) -> int:
    """The limit for a text in tokens, from the first of the files that states anything."""
    for name in _TRANSFORMER_FILES:
        path = folder / name
        content = read_object(path, default={})
        if content:
            break
    model, model_too, tokenizer_too, processor = (_part(path, content, key) for key in _ARGUMENTS)
    arguments = {**tokenizer_too, **processor}
    length = arguments.pop("model_max_length", None) or content.get("max_seq_length")
    length = tokenizer.model_max_length if length is None else length
    if not isinstance(length, int) or isinstance(length, bool) or length < 8:
        raise CheckpointError(f"{path} states the length {length!r}, which is no number of tokens")
    # Dtype and attention are for the caller to choose.
    own = {"dtype", "torch_dtype", "attn_implementation"}
    arguments.update({k: v for k, v in {**model, **model_too}.items() if k not in own})
    if arguments:
        raise CheckpointError(f"{path} has the arguments {arguments}, which are not supported")
    for key, value in content.items():
        if key not in _READ_ELSEWHERE and value not in (None, False, {}, [], _DEFAULTS.get(key)):
            raise unsupported(path, key, value)
    if content.get("do_lower_case") and not _lowers(tokenizer):
        raise CheckpointError(
            f"{path} says do_lower_case, and the tokenizer does not lower-case: put a Lowercase "
            "normalizer into tokenizer.json"
        )
    return length


def _lowers(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer itself lower-cases texts."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or backend.normalizer is None:
        return False
    capital, small = map(backend.normalizer.normalize_str, ("AZ ÄÉ ЖЯ ΑΩ", "az äé жя αω"))
    return bool(capital == small)


def _stated_prompts(path: Path, stated: Mapping[str, Any]) -> tuple[str, str]:
    """The prompts before a query and before a document."""
    prompts = stated.get("prompts") or {}
    if not isinstance(prompts, dict) or not all(
        each is None or isinstance(each, str) for each in prompts.values()
    ):
        raise CheckpointError(f"{path} holds prompts that are not strings")
    query = prompts.get("query") or ""
    document = next(filter(None, map(prompts.get, ("document", "passage", "corpus"))), "")
    for prompt in (query, document):
        if any(name in prompt for name in ("{query}", "{document}", "{task}")):
            raise CheckpointError(f"{path} has the prompt {prompt[:80]!r} with a name in braces")
    default = stated.get("default_prompt_name")
    if default is None:
        return query, document
    if str(default) not in {"query", "document", *prompts}:
        raise CheckpointError(
            f"{path} has default_prompt_name = {str(default)[:80]!r}, and no prompt of that name"
        )
    if (prompts.get(str(default)) or "") != document:
        raise CheckpointError(
            f"{path} has default_prompt_name = {str(default)[:80]!r}: encode() of "
            "sentence-transformers uses that prompt and its encode_document() another one; choose "
            "with prompts=Prompts(query=..., document=...)"
        )
    return query, document


def _sentence_transformers_pooling(path: Path) -> Pooling:
    config = read_object(path)
    names: dict[str, Pooling] = {"lasttoken": "last", "cls": "cls", "mean": "mean"}
    stated = config.get("pooling_mode", [])
    stated = stated if isinstance(stated, list) else [stated]
    if "pooling_mode" not in config:  # the old flags count only without it
        old = {key: on for key, on in config.items() if key.startswith("pooling_mode_")}
        stated = [_OLD_FLAGS.get(key, key) for key, on in old.items() if on]
        stated = stated or ["mean"] * bool(old)
    if len(stated) != 1 or str(stated[0]) not in names:
        raise CheckpointError(
            f"{path} asks for pooling {stated}; one of {sorted(names)} is supported"
        )
    if not config.get("include_prompt", True):
        raise CheckpointError(
            f"{path} leaves the prompt out of the pooling, which is not supported"
        )
    return names[stated[0]]


def _sentence_transformers_prompts(
    stated: tuple[str, str], pooling: Pooling, tokenizer: PreTrainedTokenizerBase
) -> Prompts:
    query, document = stated
    listwise: ChatListwise | SpanListwise | None = SpanListwise()
    if pooling == "last":
        chat = ChatListwise()
        vocabulary = tokenizer.get_vocab()
        listwise = chat if all(t in vocabulary for t in ("<|im_start|>", "<think>")) else None
    before, _, after = E2RANK.query.partition("{task}")
    tail = after.removesuffix("{query}")
    if query.startswith(before) and query.endswith(tail) and before:
        task = E2RANK.task.model_copy(
            update={"query": query.removeprefix(before).removesuffix(tail)}
        )
        return Prompts(
            query=E2RANK.query, document=document + "{document}", listwise=listwise, task=task
        )
    return Prompts(query=query + "{query}", document=document + "{document}", listwise=listwise)
