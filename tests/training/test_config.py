"""A configuration says everything, and says what is wrong with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from e2rank_rag.training.config import ADAPTER_CONFIG, ListwiseConfig, listwise_config, read_config

MINIMAL = """\
init_from: minilm
output: out
mode: joint
data: [{path: lists.jsonl}]
"""


def written(folder, text):
    path = folder / "stage2.yaml"
    path.write_text(text)
    return path


def test_what_is_left_out_has_the_values_of_the_paper(tmp_path):
    config = read_config(written(tmp_path, MINIMAL))
    assert config.list_size == 16
    assert config.ranknet_weight == 2.0
    assert config.ranknet_temperature == 0.1
    assert config.info_nce_temperature == 0.03
    assert config.prompt.depths == (20,)


def test_sources_are_found_from_the_folder_of_the_file(tmp_path):
    text = MINIMAL + "dev: [{path: /data/dev, corpus: corpus.jsonl}]\n"
    config = read_config(written(tmp_path, text))
    assert config.data[0].path == tmp_path / "lists.jsonl"
    assert config.dev[0].path == Path("/data/dev")
    assert config.dev[0].corpus == tmp_path / "corpus.jsonl"
    assert config.output == Path("out")


def test_settings_on_the_command_line_replace_those_of_the_file(tmp_path):
    overrides = ["trainer.max_steps=7", "prompt.depths=[0, 4]", "query_weight=0.5", "output=there"]
    config = read_config(written(tmp_path, MINIMAL), overrides)
    assert config.trainer == {"max_steps": 7}
    assert config.prompt.depths == (0, 4)
    assert config.query_weight == 0.5
    assert config.output == Path("there")


@pytest.mark.parametrize(
    ("text", "overrides", "reason"),
    [
        (MINIMAL + "lamda: 2\n", [], "stage2.yaml: lamda: Extra inputs are not permitted"),
        (MINIMAL, ["prompt.dept=3"], "prompt.dept: Extra inputs are not permitted"),
        (MINIMAL, ["list_size=1"], "list_size: Input should be greater than or equal to 2"),
        (MINIMAL, ["list_size"], "'list_size' is no setting; write key=value"),
        (MINIMAL, ["mode.x=1"], "'mode.x=1': mode is no block of settings"),
        (MINIMAL, ["mode=adapter"], 'mode "adapter" trains LoRA weights: give lora'),
        (MINIMAL, ["ranknet_weight=0", "info_nce_weight=0"], "are both 0: nothing is trained"),
        ("data: []\n", [], "init_from: Field required"),
        ("- a list\n", [], "stage2.yaml holds no settings, but list"),
        ("a: [\n", [], "stage2.yaml is not YAML"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, text, overrides, reason):
    with pytest.raises(ValueError, match=r"stage2|setting") as caught:
        read_config(written(tmp_path, text), overrides)
    assert reason in str(caught.value)


def test_the_configurations_that_ship_are_whole():
    given = {"init_from": "minilm", "output": "out", "data": [{"path": "x"}]}
    for path in ADAPTER_CONFIG.parent.glob("*.yaml"):
        assert isinstance(listwise_config(path, (), given), ListwiseConfig)
