"""A configuration says everything, and says what is wrong with it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from e2rank_rag.prompts import NAMED_PROMPTS, Prompts
from e2rank_rag.training.arguments import training_arguments
from e2rank_rag.training.config import (
    ADAPTER_CONFIG,
    ContrastiveConfig,
    ListwiseConfig,
    RankT5Config,
    ResRankConfig,
    read_config,
)
from e2rank_rag.training.lists import SourceBatches
from e2rank_rag.training.stages.cross_encoder import CrossEncoderStage

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


STAGE1 = """\
stage: contrastive
init_from: minilm
output: out
data: [{path: pairs.jsonl}]
"""


RANKT5 = """\
stage: rankt5
init_from: minilm
output: out
data: [{path: lists.jsonl}]
"""


def test_a_ranker_of_pairs_has_the_values_of_its_paper(tmp_path):
    config = read_config(written(tmp_path, RANKT5))
    assert isinstance(config, RankT5Config)
    assert (config.loss, config.list_size, config.epsilon) == ("softmax", 36, 1.0)
    assert config.retriever == "minilm"
    ships = read_config(ADAPTER_CONFIG.parent / "rankt5.yaml")
    assert isinstance(ships, RankT5Config)
    assert (ships.list_size, ships.max_tokens, ships.loss) == (36, 384, "softmax")
    for stated in (ships.trainer, CrossEncoderStage.defaults):
        assert stated["learning_rate"] == 1e-4
        assert stated["lr_scheduler_type"] == "constant"
        assert stated["per_device_train_batch_size"] == 32


def test_the_stage_says_which_kind_it_is(tmp_path):
    assert isinstance(read_config(written(tmp_path, MINIMAL)), ListwiseConfig)
    config = read_config(written(tmp_path, STAGE1))
    assert isinstance(config, ContrastiveConfig)
    assert config.temperature == 0.03
    assert config.negatives == 1
    assert config.near_positive is None
    assert config.data[0].path == tmp_path / "pairs.jsonl"


def test_prompts_are_a_name_or_a_record(tmp_path):
    named = read_config(written(tmp_path, STAGE1), ["prompts=e2rank", "pooling=last"])
    assert named.prompts in NAMED_PROMPTS
    stated = read_config(written(tmp_path, STAGE1), ["prompts.query='query: {query}'"])
    assert stated.prompts == Prompts(query="query: {query}")


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
        (MINIMAL, ["list_size"], "'list_size' is not a setting; write key=value"),
        (MINIMAL, ["mode.x=1"], "'mode.x=1': mode is not a block of settings"),
        (MINIMAL, ["mode=adapter"], 'mode "adapter" trains LoRA weights: give lora'),
        (MINIMAL, ["ranknet_weight=0", "info_nce_weight=0"], "are both 0: nothing is trained"),
        (MINIMAL, ["mode=joint", "vectors=kept"], 'vectors: in mode "joint" documents are not fr'),
        (MINIMAL, ["mode=joint", "feedback={}"], 'feedback: in mode "joint" documents are not f'),
        (MINIMAL, ["mode=joint", "evidence={}"], 'evidence: in mode "joint" documents are not f'),
        (MINIMAL, ["evidence.language=elvish"], "evidence.language: Value error, language must be"),
        (MINIMAL, ["mode=joint", "anchor=1"], 'anchor: in mode "joint" there is no adapter'),
        (MINIMAL, ["margin=0.1"], "margin is for the counterfactual, whose weight is 0"),
        (MINIMAL, ["prompt.dropout=1"], "prompt.dropout: Input should be less than 1"),
        (STAGE1, ["mode=joint"], "mode: Extra inputs are not permitted"),
        (STAGE1, ["chunk_size=0"], "chunk_size: Input should be greater than or equal to 1"),
        (STAGE1, ["near_positive=1.5"], "near_positive: Input should be less than or equal to 1"),
        (STAGE1, ["pooling=max"], "pooling: Input should be 'last', 'cls' or 'mean'"),
        (STAGE1, ["stage=pretraining"], "stage: 'pretraining' is none of ['contrastive', 'listw"),
        (STAGE1, ["stage=[1]"], "stage: [1] is none of ['contrastive', 'listwise', 'r"),
        (RANKT5, ["list_size=1"], "list_size: Input should be greater than or equal to 2"),
        (
            RANKT5,
            ["loss=ranknet"],
            "loss: Input should be 'point_ce', 'pair', 'softmax' or",
        ),
        (RANKT5, ["structure=decoder"], "structure: Input should be 'encoder-decoder' or 'enc"),
        (RANKT5, ["upsample=true"], 'upsample is for the loss "point_ce", not for "softmax"'),
        (RANKT5, ["epsilon=2"], 'epsilon is for the loss "poly1", not for "softmax"'),
        (RANKT5, ["pooling=max"], "pooling: Input should be"),
        (RANKT5, ["mode=joint"], "mode: Extra inputs are not permitted"),
        ("data: []\n", [], "init_from: Field required"),
        ("- a list\n", [], "stage2.yaml holds no settings, but list"),
        ("a: [\n", [], "stage2.yaml is not YAML"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, text, overrides, reason):
    with pytest.raises(ValueError, match=r"stage2|setting") as caught:
        read_config(written(tmp_path, text), overrides)
    assert reason in str(caught.value)


# The new name is not known to the first releases of transformers 5.
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")
def test_the_configurations_that_ship_are_whole():
    given = {"init_from": "minilm", "output": "out", "data": [{"path": "x"}]}
    assert read_config(ADAPTER_CONFIG, (), given).mode == "adapter"
    stages = [read_config(path) for path in sorted(ADAPTER_CONFIG.parent.glob("stage*.yaml"))]
    assert [config.stage for config in stages] == ["contrastive", "listwise", "listwise"]
    rankers = [read_config(path) for path in sorted(ADAPTER_CONFIG.parent.glob("rankt5*.yaml"))]
    assert [config.stage for config in rankers] == ["rankt5", "rankt5"]
    resranks = [read_config(path) for path in sorted(ADAPTER_CONFIG.parent.glob("resrank*.yaml"))]
    assert [config.stage for config in resranks] == ["resrank", "resrank"]
    for config in (*stages, *rankers, *resranks):
        cpu = config.model_copy(update={"trainer": {**config.trainer, "use_cpu": True}})
        assert training_arguments(cpu, Path("run"), {}).num_train_epochs == 1


def test_stage_2_begins_from_what_stage_1_writes():
    one, two = (
        read_config(ADAPTER_CONFIG.parent / f"{name}-qwen3.yaml")
        for name in ("stage1", "stage2-joint")
    )
    assert Path(two.init_from) == one.output
    assert one.trainer["per_device_train_batch_size"] == 512
    # On the paper's 8 GPUs.
    steps = two.trainer["gradient_accumulation_steps"]
    assert 8 * two.trainer["per_device_train_batch_size"] * steps == 128


def test_stage_2_takes_as_many_updates_as_its_file_says():
    """The sources of the released lists as the paper counts them (appendix B), each up to its
    limit, for 8 processes that take batches in turn."""
    path = ADAPTER_CONFIG.parent / "stage2-joint-qwen3.yaml"
    two = read_config(path)
    counts = [20_000] * 7 + [13_483, 3_837]
    (source,) = two.data
    sizes = [min(count, source.limit) for count in counts]
    batches = SourceBatches(sizes, two.trainer["per_device_train_batch_size"], balance=1.0, seed=0)
    updates = -(-(len(batches) // 8) // two.trainer["gradient_accumulation_steps"])
    assert f"{sum(sizes):,} lists: {updates} updates" in path.read_text().replace("\n# ", " ")


def test_the_configurations_of_the_documentation_are_whole(tmp_path):
    page = Path(__file__).parents[2] / "docs" / "training.md"
    blocks = re.findall(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    stages = [type(read_config(written(tmp_path, block))) for block in blocks]
    assert stages == [ContrastiveConfig, ListwiseConfig]
    for name, kind in (("rankt5", RankT5Config), ("resrank", ResRankConfig)):
        text = page.with_name(f"{name}.md").read_text(encoding="utf-8")
        blocks = re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)
        assert [type(read_config(written(tmp_path, block))) for block in blocks] == [kind]
