"""Settings mean what was written, in a file and on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from pydantic import TypeAdapter

from e2rank_rag.evidence import Evidence
from e2rank_rag.feedback import Feedback
from e2rank_rag.prompts import Prompts
from e2rank_rag.recipe import ResidualLayout
from e2rank_rag.training.config import (
    STAGES,
    LoraOptions,
    PromptOptions,
    RankT5Config,
    Source,
    read_config,
)
from e2rank_rag.training.settings import override, read_settings

STAGE = {
    "contrastive": {},
    "listwise": {"mode": "adapter", "lora": {}},
    "resrank": {"mode": "frozen"},
    "rankt5": {},
}
BLOCKS = {
    "lora": LoraOptions,
    "prompt": PromptOptions,
    "feedback": Feedback,
    "evidence": Evidence,
    "layout": ResidualLayout,
    "prompts": Prompts,
}
SPELLINGS = {
    True: ["true", "yes", "on", "True"],
    False: ["false", "no", "off"],
    None: ["null", "~", ""],
    2e-5: ["2e-5", "2E-5", "0.00002", "2.0e-05"],
    2026: ["2026", "2026.0", "2.026e3"],
}
"""Of values, as users write them."""


def minimal(stage, tmp_path):
    return {
        "stage": stage,
        "init_from": "minilm",
        "output": "out",
        "data": [{"path": str(tmp_path / "x.jsonl")}],
        **STAGE[stage],
    }


def both_ways(tmp_path, stage, key, text):
    """The configuration with `key: text` in the file, and with `key=text` behind it."""
    path = tmp_path / "stage.yaml"
    plain = minimal(stage, tmp_path)
    path.write_text(yaml.safe_dump(plain))
    behind = read_config(path, [f"{key}={text}"])
    *blocks, last = key.split(".")
    lines = [f"{'  ' * depth}{block}:" for depth, block in enumerate(blocks)]
    kept = {name: value for name, value in plain.items() if name != key.split(".")[0]}
    lines.append(f"{'  ' * len(blocks)}{last}: {text}")
    path.write_text(yaml.safe_dump(kept) + "\n".join(lines) + "\n")
    return read_config(path), behind


def scalars(kind, within=""):
    """Every setting of a configuration with the spellings that its type admits."""
    for name, field in kind.model_fields.items():
        if within == "" and name in BLOCKS:
            yield from scalars(BLOCKS[name], f"{name}.")
        for value, texts in SPELLINGS.items():
            try:
                adapter = TypeAdapter(field.annotation)
                if type(adapter.validate_python(value, strict=True)) is type(value):
                    yield from ((within + name, text, value) for text in texts)
            except ValueError:
                continue


@pytest.mark.parametrize("stage", STAGES)
def test_a_setting_that_is_given_is_used(tmp_path, stage):
    tried = set()
    for key, text, value in scalars(STAGES[stage]):
        if key.startswith("feedback") and stage != "listwise":
            continue
        refused = None
        try:
            found = both_ways(tmp_path, stage, key, text)
        except ValueError as error:
            refused = str(error)
        if refused is not None:  # for its value, not for how it is written
            assert key.split(".")[-1] in refused
            assert "valid" not in refused
            continue
        for each in found:
            for part in key.split("."):
                each = getattr(each, part)
            assert (each, type(each)) == (value, type(value)), (key, text)
        tried.add(key)
    assert len(tried) > 8


@pytest.mark.parametrize("name", ["2026", "007", "no", "on", "1_000", "2024-01-01", "1:30", "+5"])
def test_a_name_of_digits_or_of_a_word_is_a_name(tmp_path, name):
    for key in ("output", "init_from"):
        for config in both_ways(tmp_path, "contrastive", key, name):
            assert str(getattr(config, key)) == name
    assert str(Source(path=2026).path) == "2026"


@pytest.mark.parametrize(
    ("key", "text", "said"),
    [
        ("dropout", "true", "dropout: Value error, a number is needed, not true"),
        ("data", "[{path: x, limit: yes}]", "data.0.limit: .* got 'yes'"),
        ("data", "[{path: x, limit: true}]", "data.0.limit: .* a number is needed"),
        ("output", "1.10", "output: .* got 1.1"),
        ("lora", "{rank: true}", "rank: .*a number is needed, not true"),
        ("prompts", "{query: 2026, max: 1}", "prompts"),
        ("temperature", "warm", "temperature: .* got 'warm'"),
        ("data", "", "data: "),
        ("data", "5", "data: .* got 5"),
        ("balance", ".inf", "balance: .*finite number, got inf"),
        ("temperature", "1e400", "temperature: .*finite number, got inf"),
        ("dropout", "nan", "dropout: .*finite number, got 'nan'"),
        ("lora", "{targets: []}", "lora.targets"),
        ("lora", "{[rank]: 4}", "a key is not a word"),
    ],
)
def test_what_is_of_another_type_is_named(tmp_path, key, text, said):
    with pytest.raises(ValueError, match=said):
        both_ways(tmp_path, "contrastive", key, text)


def test_a_key_that_is_given_twice_is_refused(tmp_path):
    path = tmp_path / "stage.yaml"
    path.write_text("trainer:\n  learning_rate: 1e-3\n  max_steps: 3\n  learning_rate: 1e-4\n")
    with pytest.raises(ValueError, match=r"'learning_rate' is given twice(?s:.)*line 4"):
        read_settings(path)


def test_a_block_that_is_empty_takes_settings():
    settings = {"trainer": None}
    override(settings, "trainer.max_steps=3")
    override(settings, "prompt.depths=[1, 2]")
    assert settings == {"trainer": {"max_steps": 3}, "prompt": {"depths": [1, 2]}}


@pytest.mark.parametrize(
    ("source", "unused"),
    [
        ({"path": "folder", "corpus": "x"}, "corpus is for a file of examples"),
        ({"path": "folder", "mine": True}, "mine is for a file of examples"),
        ({"path": "file", "split": "dev"}, "split is for a BEIR folder"),
        ({"path": "file", "depth": 20}, "depth is for lists that are mined"),
        ({"path": "file", "first_negative": 2}, "first_negative is for lists that are mined"),
    ],
)
def test_a_setting_of_a_source_that_it_has_no_use_for_is_refused(tmp_path, source, unused):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=f"{unused}, which .* is not: leave it out"):
        Source(**{**source, "path": tmp_path / source["path"]})


def test_a_configuration_made_in_python_is_read_as_one_that_was_written():
    given = {"init_from": "minilm", "output": Path("out"), "data": [{"path": Path("x")}]}
    assert RankT5Config(**given, list_size="8", upsample=None).list_size == 8


@pytest.mark.parametrize("depths", ["[]", "[-1]", "[3, -2]", "no", "[.nan]", "5"])
def test_depths_of_a_prompt_are_numbers_of_documents(tmp_path, depths):
    with pytest.raises(ValueError, match=r"prompt\.depths"):
        both_ways(tmp_path, "listwise", "prompt.depths", depths)


@pytest.mark.parametrize("block", ["feedback", "layout"])
def test_records_of_other_modules_are_read_alike(tmp_path, block):
    stage = {"feedback": "listwise", "layout": "resrank"}[block]
    name, text = {"feedback": ("weight", "1e-1"), "layout": ("unit_hidden", "no")}[block]
    for config in both_ways(tmp_path, stage, f"{block}.{name}", text):
        assert getattr(getattr(config, block), name) in (0.1, False)
    if block == "feedback":
        with pytest.raises(ValueError, match=r"feedback: .*weight: a number is needed, not true"):
            both_ways(tmp_path, stage, "feedback.weight", "true")
