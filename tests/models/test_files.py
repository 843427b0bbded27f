"""Folders that ask for more than a model: each is refused, at once, and opens nothing else."""

from __future__ import annotations

import json
import os
import shutil
import sys

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForSequenceClassification, BertModel

from e2rank_rag.errors import CheckpointError
from e2rank_rag.models import files
from e2rank_rag.models.adapter import quiet_peft
from e2rank_rag.models.cross_encoder import CrossEncoder
from e2rank_rag.models.e2rank_folder import save_adapter
from e2rank_rag.models.encoder import Encoder
from e2rank_rag.models.files import follow_umask
from e2rank_rag.models.resrank import ResRank
from e2rank_rag.models.weights import load_transformer
from tests.kit import watchdog
from tests.poisons import POISONS, change, in_recipe

_watched: list[tuple[str, object]] | None = None


def _watch(event, arguments):
    if _watched is not None and event in ("open", "socket.connect", "socket.getaddrinfo"):
        _watched.append((event, arguments[0]))


sys.addaudithook(_watch)


@pytest.fixture
def opened():
    """What was opened and connected to since."""
    global _watched
    _watched = []
    yield _watched
    _watched = None


@pytest.fixture
def outside(tiny_bert, tmp_path):
    """Files that must not be read, whatever a folder says."""
    folder = shutil.copytree(tiny_bert, tmp_path / "outside")
    (folder / "chat_template.jinja").write_text("secret")
    (folder / "e2rank.json").write_text("{}")
    (folder / "config.json").write_text((tiny_bert / "config.json").read_text())
    shutil.copy(folder / "1_Pooling/config.json", folder / "pooling.json")
    return folder


@pytest.mark.parametrize("poison", POISONS.values(), ids=POISONS)
def test_what_a_model_folders_author_wrote_cannot_steer_anything_but_numbers(
    tiny_bert, outside, tmp_path, opened, poison
):
    folder = shutil.copytree(tiny_bert, tmp_path / "model")
    poison(folder, outside)
    del opened[:]
    with watchdog(), pytest.raises(CheckpointError):
        Encoder.from_pretrained(folder, local_files_only=True)
    assert not [each for event, each in opened if event != "open"]
    assert not [each for _, each in opened if str(each).startswith(str(outside))]
    assert not [each for _, each in opened if str(each).endswith(".bin")]


def test_a_tokenizer_config_cannot_name_another_file(tiny_bert, outside, tmp_path, opened, caplog):
    folder = shutil.copytree(tiny_bert, tmp_path / "model")
    names = ("tokenizer_file", "vocab_file", "special_tokens_map_file", "chat_template_file")
    change(
        folder / "tokenizer_config.json",
        auto_map={"AutoTokenizer": ["someone/code--tokenizer.Evil", None]},
        **{name: str(outside / "tokenizer.json") for name in names},
    )
    change(folder / "config.json", auto_map={"AutoModel": "someone/code--modeling.Evil"})
    del opened[:]
    with Encoder.from_pretrained(folder) as encoder, Encoder.from_pretrained(tiny_bert) as other:
        np.testing.assert_array_equal(
            encoder.encode_documents(["cats purr"]), other.encode_documents(["cats purr"])
        )
    assert not [each for _, each in opened if str(each).startswith(str(outside))]
    assert "names code of its own (auto_map), which is never run" in caplog.text


def test_how_a_config_would_have_a_model_answer_changes_no_vector(tiny_bert, tmp_path):
    folder = shutil.copytree(tiny_bert, tmp_path / "model")
    change(
        folder / "config.json",
        return_dict=False,
        output_hidden_states=True,
        output_attentions=True,
        chunk_size_feed_forward=7,
    )
    with Encoder.from_pretrained(folder) as encoder, Encoder.from_pretrained(tiny_bert) as other:
        np.testing.assert_array_equal(
            encoder.encode_documents(["cats purr"]), other.encode_documents(["cats purr"])
        )
        encoder.save(tmp_path / "saved")


def test_the_tokens_of_a_prompt_must_have_embeddings_too(tiny_qwen3, tmp_path):
    folder = shutil.copytree(tiny_qwen3, tmp_path / "model")
    with Encoder.from_pretrained(folder, pooling="last", prompts="e2rank") as encoder:
        special = encoder.tokenizer.special_ids
    # As under a tokenizer that was extended without the model.
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.endswith("embed_tokens.weight"))
    weights[name] = weights[name][: max(special)].clone()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    change(folder / "config.json", vocab_size=len(weights[name]), eos_token_id=None)
    with pytest.raises(CheckpointError, match="another model's tokenizer"):
        Encoder.from_pretrained(folder, pooling="last", prompts="e2rank")


@pytest.fixture
def cross_encoder(tiny_bert, tmp_path):
    folder = shutil.copytree(tiny_bert, tmp_path / "cross-encoder")
    config = BertConfig.from_pretrained(tiny_bert)
    config.num_labels = 1
    torch.manual_seed(5)
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


def test_a_recipe_of_these_tests_is_read_but_for_what_is_poisoned(tiny_bert, outside, tmp_path):
    folder = shutil.copytree(tiny_bert, tmp_path / "model")
    in_recipe()(folder, outside)
    Encoder.from_pretrained(folder).close()


def test_a_stated_number_that_does_not_fit_is_the_callers(tiny_bert):
    with pytest.raises(ValueError, match="truncate_dim is 33, but") as raised:
        Encoder.from_pretrained(tiny_bert, truncate_dim=33)
    assert not isinstance(raised.value, CheckpointError)


OF_EVERY_SYSTEM = [
    "no share",
    "no yes and no",
    "another weights file",
    "a kernel of the hub",
    "200,000 layers",
    "layers left out",
    "a deep config",
    "pickled shards",
    "shards outside",
    "pickles beside a decoy",
    "linked weights",
    "an adapter beside",
    "a special id beyond it",
    "an id beyond the vocabulary",
    "nested repetition",
    "a normaliser that grows",
]


@pytest.mark.parametrize("name", OF_EVERY_SYSTEM)
def test_cross_encoders_are_held_to_the_same(cross_encoder, outside, name):
    CrossEncoder.from_pretrained(cross_encoder).close()
    POISONS[name](cross_encoder, outside)
    with pytest.raises(CheckpointError):
        CrossEncoder.from_pretrained(cross_encoder)


@pytest.mark.parametrize("name", ["200,000 layers", "linked weights", "pickles beside a decoy"])
@pytest.mark.parametrize("part", ["encoder", "reranker"])
def test_both_models_of_a_resrank_are_held_to_the_same(tiny_resrank, outside, tmp_path, name, part):
    folder = shutil.copytree(tiny_resrank, tmp_path / "resrank")
    POISONS[name](folder / part, outside)
    with pytest.raises(CheckpointError):
        ResRank.from_pretrained(folder)


@pytest.mark.parametrize("part", ["encoder", "reranker", "head.safetensors"])
def test_a_part_of_a_resrank_is_no_link_to_elsewhere(tiny_resrank, tmp_path, part):
    folder = shutil.copytree(tiny_resrank, tmp_path / "resrank")
    (folder / part).rename(tmp_path / part)
    (folder / part).symlink_to(tmp_path / part)
    with pytest.raises(CheckpointError, match="outside the model folder"):
        ResRank.from_pretrained(folder)


def test_segments_beyond_the_models_are_refused(cross_encoder):
    content = json.loads((cross_encoder / "tokenizer.json").read_text())
    for part in content["post_processor"]["pair"]:
        for each in part.values():
            each["type_id"] *= 7
    (cross_encoder / "tokenizer.json").write_text(json.dumps(content))
    change(
        cross_encoder / "tokenizer_config.json",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )
    with pytest.raises(CheckpointError, match="numbers segments up to 7"):
        CrossEncoder.from_pretrained(cross_encoder)


@pytest.mark.parametrize("store", ["models--someone--model/blobs", "blobs/ab"])
def test_a_snapshot_of_the_hubs_cache_is_links_into_its_blobs(tiny_bert, tmp_path, store):
    snapshot = tmp_path / "models--someone--model/snapshots/0123"
    blobs = tmp_path / store
    blobs.mkdir(parents=True)
    for number, path in enumerate(sorted(p for p in tiny_bert.rglob("*") if p.is_file())):
        target = snapshot / path.relative_to(tiny_bert)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, blobs / str(number))
        target.symlink_to(os.path.relpath(blobs / str(number), target.parent))
    with Encoder.from_pretrained(snapshot) as encoder:
        assert encoder.dim == 32


def test_an_installed_model_may_be_links(tiny_bert, tmp_path, monkeypatch):
    folder = tmp_path / "site-packages/model"
    for path in (p for p in tiny_bert.rglob("*") if p.is_file()):
        target = folder / path.relative_to(tiny_bert)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(path)
    with pytest.raises(CheckpointError, match="outside the model folder"):
        Encoder.from_pretrained(folder)
    monkeypatch.setattr(files, "installed_folder", lambda: folder)
    Encoder.from_pretrained(folder).close()


def test_shards_in_the_folder_are_read(tiny_bert, tmp_path):
    folder = shutil.copytree(tiny_bert, tmp_path / "model")
    (folder / "model.safetensors").unlink()
    BertModel.from_pretrained(tiny_bert).save_pretrained(folder, max_shard_size="30KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    with Encoder.from_pretrained(folder) as encoder, Encoder.from_pretrained(tiny_bert) as whole:
        assert encoder.digest == whole.digest


def test_heads_that_nothing_reads_may_lie_beside_the_weights(tiny_bert, tmp_path):
    folder = shutil.copytree(tiny_bert, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    weights = {f"bert.{name}": each for name, each in weights.items()}
    weights["cls.predictions.bias"] = torch.zeros(500)
    weights["bert.embeddings.position_ids"] = torch.arange(128)[None]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with Encoder.from_pretrained(folder) as encoder, Encoder.from_pretrained(tiny_bert) as other:
        assert encoder.digest == other.digest


@pytest.mark.parametrize("name", ["encoder", "cross-encoder"])
def test_an_adapter_of_peft_beside_full_weights_is_never_passed_over(
    tiny_bert, cross_encoder, tmp_path, name
):
    folder = shutil.copytree(tiny_bert, tmp_path / "model") if name == "encoder" else cross_encoder
    options = LoraConfig(r=2, target_modules=["query"])
    with quiet_peft():
        get_peft_model(BertModel.from_pretrained(tiny_bert), options).save_pretrained(folder)
    opener = Encoder if name == "encoder" else CrossEncoder
    with pytest.raises(CheckpointError, match=r"is an adapter beside the model.*merge_and_unload"):
        opener.from_pretrained(folder)
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match="an adapter of peft: merge it into its base"):
        opener.from_pretrained(folder)


@pytest.mark.parametrize(
    "values",
    [
        {"decoder_start_token_id": -1},
        {"decoder_start_token_id": "x"},
        {"decoder_start_token_id": 100_000},
        {"architectures": 7},
        {"architectures": [None]},
        {"relative_attention_max_distance": -1},
        {"num_layers": 5},
        {"num_decoder_layers": 1},
    ],
)
def test_a_t5_is_held_to_the_same(tiny_t5, tmp_path, values):
    folder = shutil.copytree(tiny_t5, tmp_path / "t5")
    change(folder / "config.json", **values)
    with pytest.raises(CheckpointError):
        CrossEncoder.from_pretrained(folder)


def test_a_pair_in_a_frame_of_no_tokens_is_refused(cross_encoder):
    content = json.loads((cross_encoder / "tokenizer.json").read_text())
    content["post_processor"]["pair"][0]["SpecialToken"]["id"] = "nowhere"
    (cross_encoder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"the tokenizer in .* cannot be read"):
        CrossEncoder.from_pretrained(cross_encoder)


# What is saved: regular files of the usual modes, whatever lay in the folder before


@pytest.fixture(params=[0o022, 0o002, 0o027, 0o077], ids=oct)
def mode(request):
    """The mode of a new file."""
    before = os.umask(request.param)
    yield 0o666 & ~request.param
    os.umask(before)


def adapted_folder(base, folder):
    options = LoraConfig(r=2, lora_alpha=4, target_modules=["query"])
    with quiet_peft():
        model = get_peft_model(load_transformer(base, dtype=torch.float32), options)
    with Encoder.from_pretrained(base) as encoder:
        return save_adapter(folder, model, encoder.recipe, base=str(base), digest=encoder.digest)


def save_encoder(models, folder):
    with Encoder.from_pretrained(models("tiny_bert")) as encoder:
        encoder.save(folder)


def save_with_end_token(models, folder):
    qwen3 = models("tiny_qwen3")
    with Encoder.from_pretrained(qwen3, pooling="last", prompts="e2rank") as encoder:
        encoder.save(folder)


def save_listwise_adapter(models, folder):
    adapted_folder(models("tiny_bert"), folder)


def save_adapted_encoder(models, folder):
    adapter = adapted_folder(models("tiny_bert"), folder.parent / "adapter")
    with Encoder.from_pretrained(adapter) as encoder:
        encoder.save(folder)


def save_rankt5(models, folder):
    with CrossEncoder.from_pretrained(models("tiny_rankt5")) as ranker:
        ranker.save(folder)


def save_cross_encoder(models, folder):
    whole = shutil.copytree(models("tiny_bert"), folder.parent / "cross-encoder")
    config = BertConfig.from_pretrained(whole)
    config.num_labels = 1
    BertForSequenceClassification(config).save_pretrained(whole)
    with CrossEncoder.from_pretrained(whole) as ranker:
        ranker.save(folder)


def save_resrank(models, folder):
    with ResRank.from_pretrained(models("tiny_resrank")) as resrank:
        resrank.save(folder)


WRITERS = [
    save_encoder,
    save_with_end_token,
    save_listwise_adapter,
    save_adapted_encoder,
    save_rankt5,
    save_cross_encoder,
    save_resrank,
]


@pytest.fixture
def models(request):
    return request.getfixturevalue


def files_of(folder):
    return [path for path in sorted(folder.rglob("*")) if not path.is_dir()]


@pytest.mark.parametrize("write", WRITERS)
def test_saved_weights_have_the_mode_of_all_other_files(models, tmp_path, mode, write):
    folder = tmp_path / "saved"
    write(models, folder)
    files = files_of(folder)
    assert any(path.suffix == ".safetensors" for path in files)
    assert {path.name: path.stat().st_mode & 0o777 for path in files} == {
        path.name: mode for path in files
    }


@pytest.mark.parametrize("write", WRITERS)
def test_what_is_saved_never_goes_through_a_link(models, tmp_path, write):
    first, folder, target = tmp_path / "first", tmp_path / "saved", tmp_path / "target"
    write(models, first)
    target.write_text("precious")
    for path in files_of(first):
        link = folder / path.relative_to(first)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(target)
    shutil.rmtree(tmp_path / "adapter", ignore_errors=True)
    shutil.rmtree(tmp_path / "cross-encoder", ignore_errors=True)
    write(models, folder)
    assert target.read_text() == "precious"
    assert not [path for path in folder.rglob("*") if path.is_symlink()]
    assert [path.relative_to(folder) for path in files_of(folder)] == [
        path.relative_to(first) for path in files_of(first)
    ]


@pytest.mark.parametrize(
    ("write", "part"), [(save_encoder, "1_Pooling"), (save_listwise_adapter, "listwise_adapter")]
)
def test_a_link_to_a_folder_is_refused_and_nothing_is_written(models, tmp_path, write, part):
    (tmp_path / "elsewhere").mkdir()
    folder = tmp_path / "saved"
    folder.mkdir()
    (folder / part).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=f"{part} is a link to .*elsewhere"):
        write(models, folder)
    assert os.listdir(folder) == [part]
    assert not os.listdir(tmp_path / "elsewhere")


def test_an_adapters_folder_is_not_copied_with_all_that_it_holds(tiny_bert, tmp_path):
    folder = adapted_folder(tiny_bert, tmp_path / "adapter")
    (tmp_path / "secret").write_text("secret")
    (folder / "listwise_adapter/notes.txt").symlink_to(tmp_path / "secret")
    with Encoder.from_pretrained(folder) as encoder:
        saved = encoder.save(tmp_path / "saved")
    names = [path.name for path in (saved / "listwise_adapter").iterdir()]
    assert sorted(names) == ["adapter_config.json", "adapter_model.safetensors"]


def test_weights_of_a_former_model_do_not_stay(tiny_bert, tmp_path):
    folder = tmp_path / "saved"
    with Encoder.from_pretrained(tiny_bert) as encoder:
        folder.mkdir()
        for name in ("model-00001-of-00002.safetensors", "model.safetensors.index.json"):
            (folder / name).write_text("{}")
        encoder.save(folder)
        with Encoder.from_pretrained(folder) as again:
            assert again.digest == encoder.digest
    assert sorted(path.name for path in folder.glob("model*")) == ["model.safetensors"]


def test_a_model_is_not_saved_beside_an_adapter_of_peft(tiny_bert, tiny_rankt5, tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with (
        Encoder.from_pretrained(tiny_bert) as encoder,
        CrossEncoder.from_pretrained(tiny_rankt5) as t5,
    ):
        for model in (encoder, t5):
            with pytest.raises(CheckpointError, match="name another folder"):
                model.save(tmp_path)
    assert os.listdir(tmp_path) == ["adapter_config.json"]


def test_weights_that_another_library_wrote_follow_the_umask(tmp_path, mode):
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    follow_umask(tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_mode & 0o777 == mode
    assert os.listdir(tmp_path) == ["model.safetensors"]
