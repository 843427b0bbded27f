"""Expressions of real tokenizers pass, and those that could run without end do not."""

from __future__ import annotations

import base64
import json
import shutil

import pytest
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers

from e2rank_rag.errors import CheckpointError
from e2rank_rag.models.tokenizer_files import check_pattern, check_tokenizer_files

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + TAIL
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+"
)


@pytest.mark.parametrize(
    "pattern",
    [
        GPT2,
        QWEN,
        O200K,
        r" ?[^(\s|[.,!?…。、।])]+",
        r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[\p{L}\p{M}]+",
        r"<\|startoftext\|>|<\|endoftext\|>|[\p{L}]+|[^\s\p{L}\p{N}]+",
        r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))",
        r"[\p{Lu}&&[^\p{Han}]]*[\p{Ll}&&[^\p{Han}]]+|[\p{Han}]+",
        r"(?i)\d+",
        r" {2,}",
        r"^▁+$",
    ],
)
def test_the_expressions_of_real_tokenizers_pass(pattern):
    check_pattern(pattern)


@pytest.mark.parametrize(
    "pattern",
    [
        r"(a+)+$",
        r"(a*)*b",
        r"(?:a|a)*b",
        r"(?:a|aa)+$",
        r"(.*)*",
        r"(?<name>a|b)+c",
        r"(?:(?:a)+)+",
        r"(?:a?a?)+b",
        r"(?:a{1,2}){3,}",
        r"(a+){2,60}b",
        r"(?=(a+)+b)",
        r"(?i:(x+x+)+y)",
        r"a{1,2}+",
        r"a*a*a*a*b",
        r"(\w)\1",
        r"(?<n>a)\k<n>",
        r"(?<n>a\g<n>?)",
        r"[(]+)+",
        "a" * 6000,
    ],
)
def test_an_expression_that_could_run_without_end_is_refused(pattern):
    with pytest.raises(CheckpointError):
        check_pattern(pattern)


@pytest.fixture
def folder(tiny_bert, tmp_path):
    return shutil.copytree(tiny_bert, tmp_path / "model")


def set_steps(folder, normalizer=None, pre_tokenizer=None):
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.save(str(folder / "tokenizer.json"))


def test_steps_of_real_tokenizers_pass(folder):
    set_steps(
        folder,
        normalizers.Sequence(
            [
                normalizers.Replace("``", '"'),
                normalizers.Replace("''", '"'),
                normalizers.NFKD(),
                normalizers.StripAccents(),
                normalizers.Lowercase(),
                normalizers.Replace(Regex(r" {2,}"), " "),
                normalizers.Prepend("▁"),
                normalizers.Replace(" ", "▁"),
            ]
        ),
        pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(QWEN), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        ),
    )
    check_tokenizer_files(folder)


def table(*texts):
    """As sentencepiece writes replacements: the length of a trie, the trie, the texts."""
    return base64.b64encode((0).to_bytes(4, "little") + b"".join(t + b"\0" for t in texts)).decode()


def test_a_table_of_replacements_replaces_by_little(folder):
    content = json.loads((folder / "tokenizer.json").read_text())
    for texts, passes in (([b"a", b"ss" * 9], True), ([b"a", b"a" * 1_000_000], False)):
        content["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": table(*texts)}
        (folder / "tokenizer.json").write_text(json.dumps(content))
        if passes:
            check_tokenizer_files(folder)
        else:
            with pytest.raises(CheckpointError, match="replaces a character by 1000000 bytes"):
                check_tokenizer_files(folder)


@pytest.mark.parametrize("content", ["[]", '{"added_tokens": 3}', '{"normalizer": [1]}'])
def test_what_is_no_tokenizer_is_a_checkpoint_error(folder, content):
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(CheckpointError, match="tokenizer"):
        check_tokenizer_files(folder)
