"""The folder layout of sentence-transformers: what it says of encoding, and how to write it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from e2rank_rag.errors import CheckpointError
from e2rank_rag.models.families import positions
from e2rank_rag.models.folder_check import read_json
from e2rank_rag.prompts import E2RANK, ChatListwise, Prompts, SpanListwise
from e2rank_rag.recipe import Pooling, Recipe


def sentence_transformers_files(recipe: Recipe, dimensions: int) -> dict[str, Any]:
    """What sentence-transformers reads of a recipe, by file name."""
    pooling = {"last": "lasttoken"}.get(recipe.pooling, recipe.pooling)
    prefixes = {
        "query": recipe.prompts.query_text(""),
        "document": recipe.prompts.document_text(""),
    }
    modules = ["Transformer", "Pooling", "Normalize"]
    return {
        "modules.json": [
            {
                "idx": index,
                "name": str(index),
                "path": "" if index == 0 else f"{index}_{module}",
                "type": f"sentence_transformers.models.{module}",
            }
            for index, module in enumerate(modules)
        ],
        "sentence_bert_config.json": {
            "max_seq_length": recipe.document_tokens,
            "do_lower_case": False,
        },
        "config_sentence_transformers.json": {"prompts": prefixes, "similarity_fn_name": "cosine"},
        "1_Pooling/config.json": {
            "word_embedding_dimension": dimensions,
            "pooling_mode_cls_token": pooling == "cls",
            "pooling_mode_mean_tokens": pooling == "mean",
            "pooling_mode_lasttoken": pooling == "lasttoken",
        },
        "2_Normalize/config.json": {},
    }


def sentence_transformers_recipe(
    folder: Path, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    modules = read_json(folder / "modules.json")
    try:
        kinds = [module["type"].rsplit(".", 1)[-1] for module in modules]
        paths = [module["path"] for module in modules]
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder / 'modules.json'} lists no modules: {error!r}") from error
    if kinds != ["Transformer", "Pooling", "Normalize"]:
        reason = (
            f"its layers after pooling ({', '.join(kinds[2:])}) are not supported"
            if set(kinds) - {"Transformer", "Pooling", "Normalize"}
            else "it does not normalise, so its scores are no cosines"
        )
        raise CheckpointError(
            f"{folder} is a sentence-transformers model of {' + '.join(kinds)}: {reason}; "
            "models of Transformer + Pooling + Normalize are"
        )
    pooling = _sentence_transformers_pooling(folder / paths[1] / "config.json")
    stated = (
        read_json(folder / "config_sentence_transformers.json", default={}).get("prompts") or {}
    )
    bert = read_json(folder / "sentence_bert_config.json", default={})
    if bert.get("do_lower_case") and tokenizer("A")["input_ids"] != tokenizer("a")["input_ids"]:
        raise CheckpointError(
            f"{folder / 'sentence_bert_config.json'} has texts lower-cased before they are "
            "tokenised, which is not supported; put a Lowercase normalizer into tokenizer.json"
        )
    limit = min(positions(config), bert.get("max_seq_length") or tokenizer.model_max_length)
    return {
        "pooling": pooling,
        "prompts": _sentence_transformers_prompts(stated, pooling, tokenizer),
        "query_tokens": limit,
        "document_tokens": limit,
    }


def _sentence_transformers_pooling(path: Path) -> Pooling:
    config = read_json(path)
    names: dict[str, Pooling] = {"lasttoken": "last", "cls": "cls", "mean": "mean"}
    flags = {
        "pooling_mode_lasttoken": "lasttoken",
        "pooling_mode_cls_token": "cls",
        "pooling_mode_mean_tokens": "mean",
    }
    stated = config.get("pooling_mode", [])
    stated = [stated] if isinstance(stated, str) else list(stated)
    stated += [
        flags.get(key, key) for key, on in config.items() if key.startswith("pooling_mode_") and on
    ]
    if len(stated) != 1 or stated[0] not in names:
        raise CheckpointError(
            f"{path} asks for pooling {stated}; one of {sorted(names)} is supported"
        )
    if not config.get("include_prompt", True):
        raise CheckpointError(
            f"{path} leaves the prompt out of the pooling, which is not supported"
        )
    return names[stated[0]]


def _sentence_transformers_prompts(
    stated: Mapping[str, str], pooling: Pooling, tokenizer: PreTrainedTokenizerBase
) -> Prompts:
    query, document = (
        stated.get("query") or "",
        stated.get("document") or stated.get("passage") or "",
    )
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
