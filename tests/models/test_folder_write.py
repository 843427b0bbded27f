"""What is saved: regular files of the usual modes, whatever lay in the folder before."""

from __future__ import annotations

import os
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import BertConfig, BertForSequenceClassification

from e2rank_rag.errors import CheckpointError
from e2rank_rag.models.adapter import quiet_peft
from e2rank_rag.models.checkpoint import load_transformer, save_adapter
from e2rank_rag.models.encoder import Encoder
from e2rank_rag.models.folder_write import follow_umask
from e2rank_rag.models.rankt5 import RankT5
from e2rank_rag.models.resrank import ResRank


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
    with RankT5.from_pretrained(models("tiny_rankt5")) as ranker:
        ranker.save(folder)


def save_cross_encoder(models, folder):
    whole = shutil.copytree(models("tiny_bert"), folder.parent / "cross-encoder")
    config = BertConfig.from_pretrained(whole)
    config.num_labels = 1
    BertForSequenceClassification(config).save_pretrained(whole)
    with RankT5.from_pretrained(whole) as ranker:
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
    with Encoder.from_pretrained(tiny_bert) as encoder, RankT5.from_pretrained(tiny_rankt5) as t5:
        for model in (encoder, t5):
            with pytest.raises(CheckpointError, match="name another folder"):
                model.save(tmp_path)
    assert os.listdir(tmp_path) == ["adapter_config.json"]


def test_weights_that_another_library_wrote_follow_the_umask(tmp_path, mode):
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    follow_umask(tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_mode & 0o777 == mode
    assert os.listdir(tmp_path) == ["model.safetensors"]
