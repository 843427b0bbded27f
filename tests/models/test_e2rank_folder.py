"""What a folder says about encoding, and the message for each folder that cannot be used."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from tokenizers import processors

from e2rank_rag.errors import CheckpointError
from e2rank_rag.models.e2rank_folder import RELEASED, read_recipe, save_checkpoint
from e2rank_rag.models.encoder import Encoder
from e2rank_rag.models.tokenizer_files import load_tokenizer
from e2rank_rag.models.weights import load_transformer
from e2rank_rag.prompts import E2RANK, PLAIN, ChatListwise, Prompts, SpanListwise
from e2rank_rag.recipe import ListwiseBudget, Recipe
from e2rank_rag.tokenization import TextTokenizer, plain_tokenizer

END = "<|endoftext|>"


@pytest.fixture
def qwen3_folder(tiny_qwen3, tmp_path):
    return shutil.copytree(tiny_qwen3, tmp_path / "qwen3")


@pytest.fixture
def bert_folder(tiny_bert, tmp_path):
    return shutil.copytree(tiny_bert, tmp_path / "bert")


def write(path, content):
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))


def change(path, **values):
    write(path, {**json.loads(path.read_text()), **values})


def write_modules(folder, *kinds, package="sentence_transformers.models."):
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": package + kind}
        for i, kind in enumerate(kinds)
    ]
    write(folder / "modules.json", modules)


def recipe_of(folder, **stated):
    return read_recipe(folder, name=str(folder), **stated)


# Where the recipe comes from


def test_own_recipe_goes_before_the_sentence_transformers_layout(bert_folder):
    recipe = Recipe(pooling="cls", prompts=PLAIN, query_tokens=32, query_weight=0.25)
    (bert_folder / "e2rank.json").write_text(recipe.model_dump_json())
    assert recipe_of(bert_folder) == recipe


def test_what_the_caller_states_goes_before_the_own_recipe(bert_folder):
    recipe = Recipe(pooling="cls", prompts=PLAIN, query_weight=0.25)
    (bert_folder / "e2rank.json").write_text(recipe.model_dump_json())
    stated = recipe_of(bert_folder, pooling="mean", prompts=E2RANK)
    assert stated == recipe.model_copy(update={"pooling": "mean", "prompts": E2RANK})


def test_sentence_transformers_layout_is_read(bert_folder):
    recipe = recipe_of(bert_folder)
    assert (recipe.pooling, recipe.prompts, recipe.end_token) == ("mean", PLAIN, None)
    assert recipe.query_tokens == recipe.document_tokens == recipe.listwise.max_tokens == 128


def test_a_short_prompt_has_room_for_the_documents_it_is_meant_to_show(bert_folder):
    change(bert_folder / "config.json", max_position_embeddings=512)
    change(bert_folder / "tokenizer_config.json", model_max_length=512)
    change(bert_folder / "sentence_bert_config.json", max_seq_length=512)
    budget = recipe_of(bert_folder).listwise
    assert budget.max_tokens == 512
    assert budget.depth * (budget.document_tokens + 1) < 512


@pytest.mark.parametrize(
    ("config", "pooling"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, "mean"),
        ({"pooling_mode_lasttoken": True, "pooling_mode_max_tokens": False}, "last"),
        ({"pooling_mode_mean_tokens": True, "include_prompt": True}, "mean"),
        ({"pooling_mode": "cls"}, "cls"),
        ({"pooling_mode": "lasttoken", "include_prompt": True}, "last"),
        ({"embedding_dimension": 32, "pooling_mode": ["mean"]}, "mean"),
    ],
)
def test_old_and_new_pooling_configs_are_read(bert_folder, config, pooling):
    write(bert_folder / "1_Pooling/config.json", config)
    assert recipe_of(bert_folder).pooling == pooling


@pytest.mark.parametrize(
    "types",
    [
        [
            "sentence_transformers.models.Transformer",
            "sentence_transformers.models.Pooling",
            "sentence_transformers.models.Normalize",
        ],
        [
            "sentence_transformers.base.modules.transformer.Transformer",
            "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
            "sentence_transformers.base.modules.normalize.Normalize",
        ],
    ],
)
def test_old_and_new_module_types_are_read(bert_folder, types):
    paths = ["", "1_Pooling", "2_Normalize"]
    write(
        bert_folder / "modules.json",
        [{"idx": i, "path": path, "type": types[i]} for i, path in enumerate(paths)],
    )
    assert recipe_of(bert_folder).pooling == "mean"


def test_length_is_the_smallest_of_what_is_stated(bert_folder):
    change(bert_folder / "sentence_bert_config.json", max_seq_length=64)
    assert recipe_of(bert_folder).document_tokens == 64
    change(bert_folder / "sentence_bert_config.json", max_seq_length=4096)
    assert recipe_of(bert_folder).document_tokens == 128
    change(bert_folder / "sentence_bert_config.json", max_seq_length=None)
    assert recipe_of(bert_folder).document_tokens == 128
    (bert_folder / "sentence_bert_config.json").unlink()
    assert recipe_of(bert_folder).document_tokens == 128


def test_positions_behind_the_pad_tokens_are_left_out(tiny_xlmr):
    # 130 rows, of which the first two place nothing.
    assert recipe_of(tiny_xlmr).document_tokens == 128


def test_prefixes_in_the_manner_of_e5_are_read(bert_folder):
    prompts = {"query": "query: ", "passage": "passage: "}
    write(bert_folder / "config_sentence_transformers.json", {"prompts": prompts})
    found = recipe_of(bert_folder).prompts
    assert found == Prompts(
        query="query: {query}", document="passage: {document}", listwise=SpanListwise()
    )
    assert found.query_text("cats") == "query: cats"
    assert found.document_text("cats") == "passage: cats"


def sentence_transformers_qwen3(folder, prompts):
    write_modules(folder, "Transformer", "Pooling", "Normalize")
    write(folder / "1_Pooling/config.json", {"pooling_mode_lasttoken": True})
    write(folder / "config_sentence_transformers.json", {"prompts": prompts})


def test_prompts_in_the_manner_of_qwen3_embedding_become_template_and_task(qwen3_folder):
    prompts = {"query": "Instruct: Find what answers it\nQuery:", "document": ""}
    sentence_transformers_qwen3(qwen3_folder, prompts)
    recipe = recipe_of(qwen3_folder)
    assert recipe.pooling == "last"
    assert recipe.prompts.query == "Instruct: {task}\nQuery:{query}"
    assert recipe.prompts.task.query == "Find what answers it"
    assert recipe.prompts.query_text("cats") == "Instruct: Find what answers it\nQuery:cats"
    assert recipe.prompts.listwise == ChatListwise()
    assert recipe.document_tokens == 2048


def test_a_causal_model_without_chat_tokens_has_no_listwise_prompt(bert_folder):
    write(bert_folder / "1_Pooling/config.json", {"pooling_mode_lasttoken": True})
    assert recipe_of(bert_folder).prompts.listwise is None


def test_a_bare_folder_is_refused_with_what_to_state(tiny_qwen3):
    with pytest.raises(CheckpointError) as error:
        recipe_of(tiny_qwen3)
    for part in (
        "says nowhere how it encodes",
        'pooling="last", prompts="e2rank"',
        'prompts="plain"',
    ):
        assert part in str(error.value)
    with pytest.raises(CheckpointError, match="says nowhere"):
        recipe_of(tiny_qwen3, pooling="last")


def test_a_bare_folder_opens_with_pooling_and_prompts(tiny_qwen3):
    assert recipe_of(tiny_qwen3, pooling="last", prompts=E2RANK) == Recipe(
        pooling="last",
        prompts=E2RANK,
        end_token=END,
        query_tokens=512,
        document_tokens=1024,
        listwise=ListwiseBudget(depth=20, document_tokens=1024, max_tokens=2048),
    )


@pytest.mark.parametrize("size", ["0.6B", "4B", "8B"])
@pytest.mark.parametrize("variant", ["", "-Embedding-Only"])
def test_released_hub_ids_have_their_settings_built_in(tiny_qwen3, size, variant):
    recipe = read_recipe(tiny_qwen3, name=f"Alibaba-NLP/E2Rank-{size}{variant}")
    assert recipe == recipe_of(tiny_qwen3, pooling="last", prompts=E2RANK)
    assert len(RELEASED) == 6


# What is not supported


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        (
            ["Transformer", "Pooling", "Dense", "Normalize"],
            r"\(Dense, Normalize\) are not supported",
        ),
        (["Transformer", "Pooling"], "it does not normalise, so its scores are no cosines"),
    ],
)
def test_other_module_lists_are_refused(bert_folder, kinds, message):
    write_modules(bert_folder, *kinds)
    with pytest.raises(CheckpointError, match=message):
        recipe_of(bert_folder)


@pytest.mark.parametrize("modules", [[{"idx": 0}], [1], {"a": 1}, 7])
def test_module_lists_that_are_none_are_refused(bert_folder, modules):
    write(bert_folder / "modules.json", modules)
    with pytest.raises(CheckpointError, match=r"modules\.json lists no modules"):
        recipe_of(bert_folder)


@pytest.mark.parametrize(
    "config",
    [
        {"pooling_mode_max_tokens": True, "pooling_mode_mean_tokens": False},
        {"pooling_mode": "max"},
        {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True},
        {"pooling_mode": ["mean", "cls"]},
        {},
    ],
)
def test_other_poolings_are_refused(bert_folder, config):
    write(bert_folder / "1_Pooling/config.json", config)
    with pytest.raises(CheckpointError, match=r"asks for pooling .*\['cls', 'lasttoken', 'mean'\]"):
        recipe_of(bert_folder)


def test_pooling_without_the_prompt_is_refused(bert_folder):
    config = {"pooling_mode_mean_tokens": True, "include_prompt": False}
    write(bert_folder / "1_Pooling/config.json", config)
    with pytest.raises(CheckpointError, match="leaves the prompt out of the pooling"):
        recipe_of(bert_folder)


def test_a_missing_or_corrupt_pooling_config_is_named(bert_folder):
    path = bert_folder / "1_Pooling/config.json"
    path.write_text("{")
    with pytest.raises(CheckpointError, match=r"1_Pooling/config\.json cannot be read"):
        recipe_of(bert_folder)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"1_Pooling/config\.json cannot be read"):
        recipe_of(bert_folder)


# Damaged folders


def test_a_hub_id_that_cannot_be_fetched_is_one_clear_error(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError) as error:
        Encoder.from_pretrained("nobody/no-such-model", local_files_only=True)
    assert str(error.value).startswith(
        "there is no model folder nobody/no-such-model, and the hub has not given "
        "'nobody/no-such-model' either: "
    )


def test_a_folder_without_config_is_no_model(bert_folder):
    (bert_folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no config\.json; it is no Hugging Face model"):
        recipe_of(bert_folder)


@pytest.mark.parametrize("content", ["{", "", "[]", '{"model_type": "no-such-model"}'])
def test_a_corrupt_config_is_named(bert_folder, content):
    (bert_folder / "config.json").write_text(content)
    with pytest.raises(
        CheckpointError, match=r"config\.json (cannot be read|holds a list, not an object)"
    ):
        recipe_of(bert_folder)


def test_a_folder_without_tokenizer_is_named(bert_folder):
    (bert_folder / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"the tokenizer in .* cannot be read"):
        recipe_of(bert_folder)


def test_a_corrupt_recipe_is_named(bert_folder):
    path = bert_folder / "e2rank.json"
    for content in (b"{", b"", b"\xff\xfe", b"[]", b'{"pooling": "mean"}'):
        path.write_bytes(content)
        with pytest.raises(
            CheckpointError, match=r"e2rank\.json is not a recipe this version reads"
        ):
            recipe_of(bert_folder)


@pytest.mark.parametrize("values", [{"colour": "red"}, {"format": 2}, {"pooling": "max"}])
def test_a_recipe_of_another_version_is_refused_by_field(bert_folder, values):
    path = bert_folder / "e2rank.json"
    path.write_text(Recipe(pooling="mean", prompts=PLAIN).model_dump_json())
    change(path, **values)
    with pytest.raises(CheckpointError, match=next(iter(values))):
        recipe_of(bert_folder)


def test_a_vocabulary_without_the_end_token_is_refused(bert_folder):
    path = bert_folder / "e2rank.json"
    path.write_text(Recipe(pooling="last", prompts=PLAIN, end_token=END).model_dump_json())
    change(path, query_tokens=64, document_tokens=64, listwise={"max_tokens": 64})
    with pytest.raises(CheckpointError, match=r"no token '<\|endoftext\|>'"):
        Encoder.from_pretrained(bert_folder)


# Weights


def test_a_cased_tokenizer_under_do_lower_case_is_refused(tiny_qwen3, tiny_bert, tmp_path):
    folder = shutil.copytree(tiny_qwen3, tmp_path / "cased")
    shutil.copy(tiny_bert / "modules.json", folder)
    shutil.copytree(tiny_bert / "1_Pooling", folder / "1_Pooling")
    write(folder / "sentence_bert_config.json", {"max_seq_length": 64, "do_lower_case": True})
    with pytest.raises(CheckpointError, match="do_lower_case"):
        Encoder.from_pretrained(folder)


# Saving


def test_saving_keeps_the_token_before_a_text_beside_the_end_token(qwen3_folder, tmp_path):
    tokenizer = load_tokenizer(qwen3_folder)
    start = "<|im_start|>"
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A",
        special_tokens=[(start, tokenizer.convert_tokens_to_ids(start))],
    )
    recipe = recipe_of(qwen3_folder, pooling="last", prompts=E2RANK)
    transformer = load_transformer(qwen3_folder, dtype=torch.float32)
    save_checkpoint(tmp_path / "saved", transformer, tokenizer, recipe)
    again = load_tokenizer(tmp_path / "saved")

    def ids(tokenizer):
        texts = TextTokenizer(tokenizer, plain_tokenizer(tokenizer), recipe)
        return texts.documents(["cats purr"])[0].ids

    assert ids(again) == ids(tokenizer)
    expected = tokenizer(f"{start}cats purr{END}", add_special_tokens=False)["input_ids"]
    assert ids(tokenizer) == again("cats purr")["input_ids"] == expected


def test_saving_twice_into_one_folder_is_the_same_as_once(qwen3_folder, tmp_path):
    recipe = recipe_of(qwen3_folder, pooling="last", prompts=E2RANK)
    transformer = load_transformer(qwen3_folder, dtype=torch.float32)
    save_checkpoint(tmp_path / "saved", transformer, load_tokenizer(qwen3_folder), recipe)
    once = (tmp_path / "saved/tokenizer.json").read_bytes()
    save_checkpoint(tmp_path / "saved", transformer, load_tokenizer(tmp_path / "saved"), recipe)
    assert (tmp_path / "saved/tokenizer.json").read_bytes() == once
