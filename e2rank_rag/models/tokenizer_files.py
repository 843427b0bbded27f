"""Checks the tokenizer files of a model folder, then loads them.

The folder may come from a stranger. A normaliser can double a text forty times, and a regular
expression can try every split of a text, so both are checked before the library runs them.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from e2rank_rag.errors import CheckpointError
from e2rank_rag.models.config import check_config
from e2rank_rag.models.files import MAX_TABLE_BYTES, read_json, read_object, unsupported

_MOST_ADDED_TOKENS = 20_000
_MOST_STEPS = 64
_MOST_GROWTH = 1024
_LONGEST_WORD = 10_000
_LONGEST_PATTERN = 5_000
_LONGEST_REPLACEMENT = 256
"""Bytes that may replace one character; the longest replacement of NFKC has 33."""

_MOST_REPEATS = 3
"""Unbounded quantifiers in one branch: at worst as many nested loops over a text."""

# The tokenizer's constructor would get these fields, and open what they name.
_STEERING = ("init_inputs", "gguf_file", "__slow_tokenizer", "tokenizer_object")


_PROBE = "a \U000e0001 \ua66e \U0002a6a5"
"""A letter, and characters that hardly any tokenizer has in its vocabulary."""


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder.

    CheckpointError if it cannot be read, or needs more than a table of pieces.
    """
    check_config(folder)
    try:
        check_tokenizer_files(folder)
    except CheckpointError as error:
        raise CheckpointError(f"the tokenizer in {folder} cannot be read: {error}") from None
    # Given by name, because a tokenizer_config.json could name another file.
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
    except BaseException as error:  # a panic of the tokenizers library is not an Exception
        raise CheckpointError(f"the tokenizer in {folder} cannot be read: {error}") from error
    if not stated and tokenizer.is_fast:  # made from older files, which can do the same harm
        check_tokenizer(json.loads(tokenizer.backend_tokenizer.to_str()), source=folder)
    return tokenizer


def check_tokenizer_files(folder: Path) -> None:
    """CheckpointError for files that need more than a table of pieces."""
    path = folder / "tokenizer_config.json"
    config = read_json(path, default={})
    for name in ("special_tokens_map.json", "added_tokens.json", "generation_config.json"):
        read_json(folder / name, default={})
    for key in _STEERING:
        if isinstance(config, dict) and config.get(key):
            raise unsupported(path, key, config[key])
    length = config.get("model_max_length", 1) if isinstance(config, dict) else None
    if not isinstance(length, int | float) or length < 1:
        raise CheckpointError(
            f"{path} states the length {str(length)[:80]!r}, which is no number of tokens"
        )
    path = folder / "tokenizer.json"
    content = read_object(path, default={}, most_bytes=MAX_TABLE_BYTES)
    check_tokenizer(content, source=path)


def check_tokenizer(content: dict[str, Any], *, source: Path) -> None:
    """CheckpointError for the content of a `tokenizer.json` that could do harm."""
    try:
        _check_tokenizer(content)
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from None
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{source} is no tokenizer: {error!r}") from error


def check_special_ids(ids: Sequence[int], model: Any) -> None:
    """CheckpointError for token ids that the model has no embeddings for."""
    table: Any = model.get_input_embeddings()
    if ids and max(ids) >= len(table.weight):
        raise CheckpointError(
            f"the tokenizer gives ids up to {max(ids)}, but the {type(model).__name__} has "
            f"embeddings for {len(table.weight)} ids: this is another model's tokenizer"
        )


def check_ids(
    tokenizer: PreTrainedTokenizerBase,
    plain: Tokenizer,
    model: PreTrainedModel,
    *,
    pairs: bool = False,
) -> None:
    """CheckpointError if a text could get an id that the model has no embedding for.

    plain: see `tokenization.plain_tokenizer`. pairs: whether the model reads pairs of texts.
    """
    framed = [tokenizer("a"), *([tokenizer("a", "a")] if pairs else [])]
    ids = [number for each in framed for number in each["input_ids"]]
    check_special_ids([*ids, tokenizer.pad_token_id or 0, *plain.get_vocab().values()], model)
    segments = int(getattr(model.config, "type_vocab_size", 0) or 0)
    used = max([max(each.get("token_type_ids") or [0]) for each in framed])
    if pairs and segments > 1 and used >= segments:
        raise CheckpointError(
            f"the tokenizer numbers segments up to {used}, but the {type(model).__name__} has "
            f"embeddings for {segments}"
        )


def _check_tokenizer(content: dict[str, Any]) -> None:
    _check_specials(content)
    model = content.get("model") or {}
    if (model.get("max_input_chars_per_word") or 0) > _LONGEST_WORD:
        raise CheckpointError(
            f"max_input_chars_per_word is {model['max_input_chars_per_word']}; the limit is "
            f"{_LONGEST_WORD}"
        )
    if model.get("dropout"):
        raise CheckpointError(
            f"dropout is {model['dropout']}: a text would have other tokens each time"
        )
    growth, steps = 1.0, 0
    for part in ("normalizer", "pre_tokenizer"):
        for step in _steps(content.get(part)):
            steps += 1
            growth *= _growth(step)
            if steps > _MOST_STEPS:
                raise CheckpointError(f"more than {_MOST_STEPS} steps before the tokens")
            if growth > _MOST_GROWTH:
                raise CheckpointError(
                    f"its {part} can make a text more than {_MOST_GROWTH} times as long"
                )
            for pattern in _patterns(step):
                check_pattern(pattern)


def _check_specials(content: dict[str, Any]) -> None:
    """Check the added tokens, and the special tokens around a text."""
    added = content.get("added_tokens") or []
    if len(added) > _MOST_ADDED_TOKENS:
        raise CheckpointError(f"{len(added)} added tokens; the limit is {_MOST_ADDED_TOKENS}")
    longest = max((len(token["content"]) for token in added), default=0)
    if longest > _LONGEST_WORD:
        raise CheckpointError(
            f"an added token of {longest} characters; the limit is {_LONGEST_WORD}"
        )
    for step in _steps(content.get("post_processor")):
        named = (step.get("special_tokens") or {}).values() if "single" in step else ()
        parts = [step.get("single"), step.get("pair"), *(each["ids"] for each in named)]
        if any(len(part or ()) > _MOST_STEPS for part in parts):
            raise CheckpointError(f"more than {_MOST_STEPS} special tokens around a text")


def _steps(part: Any) -> Iterator[dict[str, Any]]:
    """The steps of a normaliser, pre-tokeniser or post-processor, also those inside a sequence."""
    if part is None:
        return
    names = ("normalizers", "pretokenizers", "pre_tokenizers", "processors")
    inner = next(filter(None, map(part.get, names)), None)
    if inner is None:
        yield part
        return
    for each in inner:
        yield from _steps(each)


def _growth(step: dict[str, Any]) -> float:
    """The factor by which a step can lengthen a text, at most."""
    match step.get("type"):
        case "Replace":
            pattern, content = step["pattern"], step["content"]
            if "String" in pattern:
                return max(1.0, len(content) / max(len(pattern["String"]), 1))
            # An expression can match nothing, between any two characters.
            return 1.0 + len(content)
        case "Prepend":
            return 1.0 + len(step["prepend"]) / 64
        case "ByteLevel":
            return 2.0
        case "Precompiled":
            return _table_growth(step["precompiled_charsmap"])
    return 1.0


def _table_growth(encoded: str) -> float:
    """`_growth` of sentencepiece's table of replacements: a trie, then texts that end with 0."""
    try:
        table = base64.b64decode(encoded, validate=True)
    except binascii.Error as error:
        raise CheckpointError(f"precompiled_charsmap is no base64: {error}") from None
    texts = table[4 + int.from_bytes(table[:4], "little") :]
    longest = max(map(len, texts.split(b"\0")), default=0)
    if longest > _LONGEST_REPLACEMENT:
        raise CheckpointError(
            f"precompiled_charsmap replaces a character by {longest} bytes; the limit is "
            f"{_LONGEST_REPLACEMENT}"
        )
    # Every tokenizer of this kind has the step once; a second one would multiply the growth.
    return 18.0 if longest else 1.0


def _patterns(step: Any) -> Iterator[str]:
    if isinstance(step, dict):
        if isinstance(step.get("Regex"), str):
            yield step["Regex"]
        for value in step.values():
            yield from _patterns(value)
    elif isinstance(step, list):
        for value in step:
            yield from _patterns(value)


@dataclass
class _Group:
    """A group of a regular expression. varies: it can match one text in several ways."""

    varies: bool = False
    repeats: int = 0


_OPENING = re.compile(r"\((?:\?(?:[:=!>]|<[=!]|<\w+>|[imsx-]+(?P<flags>\))|[imsx-]+:))?")
_QUANTIFIER = re.compile(r"[*+?][?+]?|\{(?P<low>\d*)(?P<comma>,?)(?P<high>\d*)\}\??")
_ESCAPE = re.compile(r"\\(?:[pPxuh]\{[^}]*\}|u[0-9a-fA-F]{4}|x[0-9a-fA-F]{2}|.)", re.DOTALL)


def check_pattern(pattern: str) -> None:
    """CheckpointError for a regular expression that could try exponentially many matches.

    A repeated part must match in one way only: a repeated group contains no choice and no
    repetition, and the expression has no back reference.
    """
    if len(pattern) > _LONGEST_PATTERN:
        raise CheckpointError(
            f"an expression of {len(pattern)} characters; the limit is {_LONGEST_PATTERN}"
        )
    groups = [_Group()]
    closed: _Group | None = None  # the group that ends just before this place
    place = 0
    while place < len(pattern):
        if found := _QUANTIFIER.match(pattern, place):
            _repeat(pattern, found, groups[-1], closed)
            place, closed = found.end(), None
            if _QUANTIFIER.match(pattern, place):
                _refuse(pattern, "repeats a repetition")
        elif pattern[place] in "()|":
            place, closed = _after_sign(pattern, place, groups)
        else:
            place, closed = _after_character(pattern, place), None


def _after_sign(pattern: str, place: int, groups: list[_Group]) -> tuple[int, _Group | None]:
    """Open or close a group, or begin its next branch; also returns the group that ended here."""
    if pattern[place] == "|":
        groups[-1].varies, groups[-1].repeats = True, 0
        return place + 1, None
    if pattern[place] == ")":
        closed = groups.pop()
        if not groups:
            _refuse(pattern, "has a parenthesis too many")
        groups[-1].varies |= closed.varies
        return place + 1, closed
    opening = _OPENING.match(pattern, place)
    assert opening is not None  # any parenthesis matches
    if not opening["flags"]:
        groups.append(_Group())
    return opening.end(), None


def _repeat(pattern: str, found: re.Match[str], group: _Group, closed: _Group | None) -> None:
    sign = found[0][0]
    high = found["high"] if found["comma"] else found["low"]
    most = {"?": 1.0, "*": float("inf"), "+": float("inf")}.get(sign) or float(high or "inf")
    fixed = sign == "{" and not found["comma"]
    if most > 1 and closed is not None and closed.varies:
        _refuse(pattern, "repeats a group that can match in several ways")
    group.varies |= not fixed
    group.repeats += most > _MOST_STEPS
    if group.repeats > _MOST_REPEATS:
        _refuse(pattern, f"has more than {_MOST_REPEATS} repetitions in one branch")


def _after_character(pattern: str, place: int) -> int:
    """The place after a character, an escape or a character class, which may hold others."""
    depth = 0
    while place < len(pattern):
        if pattern[place] == "\\":
            if re.match(r"\\[1-9kg]", pattern[place : place + 2]):
                _refuse(pattern, "refers back to what it matched")
            found = _ESCAPE.match(pattern, place)
            place = len(pattern) if found is None else found.end()
        else:
            depth += {"[": 1, "]": -1 if depth else 0}.get(pattern[place], 0)
            place += 1
        if depth == 0:
            break
    return place


def _refuse(pattern: str, reason: str) -> None:
    raise CheckpointError(f"the expression {pattern[:120]!r} {reason}, which can take endless time")
