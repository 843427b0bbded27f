"""Names, folders and hub ids are told apart, and folders that belong together move together."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from e2rank_rag.errors import CheckpointError
from e2rank_rag.models.cross_encoder import CrossEncoder
from e2rank_rag.models.encoder import Encoder
from e2rank_rag.models.folders import (
    find_base,
    find_model,
    model_name,
    name_beside,
    name_of_base,
    resolve_folder,
)
from e2rank_rag.models.resrank import ResRank
from e2rank_rag.models.shipped import ADAPTED_FOLDER
from e2rank_rag.rerankers import load_reranker
from e2rank_rag.training import train
from e2rank_rag.training.config import ListwiseConfig, RankT5Config, ResRankConfig

OPENERS = {
    "tiny_bert": Encoder.from_pretrained,
    "tiny_resrank": ResRank.from_pretrained,
    "tiny_rankt5": CrossEncoder.from_pretrained,
}


@pytest.mark.parametrize("called", ["minilm", "e2rank-minilm", "model"])
@pytest.mark.parametrize("folder", OPENERS)
def test_a_path_is_a_path(request, tmp_path, monkeypatch, folder, called):
    here = shutil.copytree(request.getfixturevalue(folder), tmp_path / called)
    monkeypatch.chdir(tmp_path)
    for path in (Path(called), Path(f"./{called}"), here):
        # As a component keeps it, and as it comes back from YAML.
        found = find_model(model_name(path))
        assert found.folder.samefile(here)
        assert found.name == str(here)
    with OPENERS[folder](Path(called)) as model:
        assert model.name == str(here)
    with load_reranker(Path(called), **({} if folder != "tiny_bert" else {"system": "e2rank"})):
        pass


@pytest.mark.parametrize("name", ["minilm", "e2rank-minilm"])
def test_a_name_that_is_a_folder_too_is_refused_with_what_to_write(
    tiny_bert, tmp_path, monkeypatch, name
):
    shutil.copytree(tiny_bert, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    for opens in (Encoder.from_pretrained, load_reranker, resolve_folder):
        with pytest.raises(CheckpointError, match=f"write './{name}' for the folder"):
            opens(name)
    assert find_model(f"./{name}").name == str(tmp_path / name)
    assert find_model(f"{name}/").name == str(tmp_path / name)


def test_a_folder_that_holds_no_model_takes_no_name_away(tmp_path, monkeypatch):
    (tmp_path / "minilm").mkdir()
    (tmp_path / "minilm" / "metrics.jsonl").touch()
    monkeypatch.chdir(tmp_path)
    assert find_model("minilm").name == "minilm"


def test_a_shipped_model_is_recorded_by_its_name_however_it_is_opened(monkeypatch):
    assert find_model(ADAPTED_FOLDER).name == "e2rank-minilm"
    assert find_model(str(resolve_folder("minilm"))).name == "minilm"
    monkeypatch.chdir(ADAPTED_FOLDER.parent)
    assert find_model("e2rank-minilm").name == "e2rank-minilm"
    assert find_model(Path("e2rank-minilm")).name == "e2rank-minilm"


@pytest.mark.parametrize(
    "path", [Path("nowhere"), Path("org/model"), "./minilm", "~/no/model", "x/"]
)
def test_a_path_that_is_not_there_is_not_looked_up_on_the_hub(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("e2rank_rag.models.folders._from_hub", None)
    with pytest.raises(CheckpointError, match="there is no model folder"):
        find_model(path)


@pytest.mark.parametrize("name", ["no:id", "a/b/c"])
def test_a_string_that_is_neither_folder_nor_hub_id_is_named(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=f"there is no model folder {name}, .* no hub id"):
        find_model(name)


@pytest.mark.parametrize("name", ["", " "])
def test_an_empty_name_is_refused(name):
    with pytest.raises(CheckpointError, match="the name of the model is empty"):
        find_model(name)


def test_what_is_no_name_is_a_type_error():
    with pytest.raises(TypeError, match="by a string or a path, not by a NoneType"):
        find_model(None)


def test_a_file_in_place_of_a_folder_is_named(tiny_bert):
    with pytest.raises(CheckpointError, match=r"config\.json is a file; name the folder"):
        resolve_folder(tiny_bert / "config.json")


def test_a_configuration_takes_paths_for_its_models(tmp_path):
    given = {"output": tmp_path, "data": [{"path": tmp_path / "lists.jsonl"}]}
    path = Path("minilm")
    config = ResRankConfig(init_from=path, mode="frozen", reranker_from=path, **given)
    assert [config.init_from, config.reranker_from] == ["./minilm", "./minilm"]
    assert RankT5Config(init_from=path, retriever=path, **given).retriever == "./minilm"


@pytest.mark.parametrize(
    ("base", "folder", "said"),
    [
        ("minilm", "runs/a", "minilm"),
        ("org/model", "runs/a", "org/model"),
        ("{here}/base", "adapted", "../base"),
        ("{here}/models/base", "runs/a", "../../models/base"),
        ("{here}/a/base", "a", "./base"),
        ("{here}/a/.base", "a", ".base"),
        ("{here}", "a", ".."),
        ("{here}/a", "a", "."),
        ("/elsewhere/base", "a", "/elsewhere/base"),
    ],
)
def test_a_base_is_named_as_seen_from_the_folder(tmp_path, base, folder, said):
    base = base.format(here=tmp_path)
    place = tmp_path / folder
    assert name_beside(base, place) == said
    assert name_of_base(said, place) == base


def test_a_base_of_an_edited_recipe_counts_from_the_folder(tiny_bert, tmp_path):
    shutil.copytree(tiny_bert, tmp_path / "adapted" / "base")
    assert find_base("base", tmp_path / "adapted") == tmp_path / "adapted" / "base"


def trained(system, base, output, lists):
    settings = {
        "init_from": base,
        "output": output,
        "data": [{"path": lists}],
        "list_size": 4,
        "trainer": {"max_steps": 1, "per_device_train_batch_size": 2, "use_cpu": True},
    }
    if system == "resrank":
        return train(ResRankConfig(mode="frozen", **settings))
    lora = {"rank": 2}
    return train(ListwiseConfig(mode="adapter", lora=lora, **settings))


@pytest.fixture(scope="module")
def pair(tiny_bert, tmp_path_factory):
    """By system: a folder that holds a base and what was trained over it."""
    lines = [
        {
            "query": f"about {topic}",
            "documents": [topic, "no", "nor", "neither"],
            "labels": [1, 0, 0, 0],
        }
        for topic in ("cats", "dogs", "bread")
    ]
    made = {}
    for system in ("e2rank", "resrank"):
        here = tmp_path_factory.mktemp(system)
        lists = here / "lists.jsonl"
        lists.write_text("".join(json.dumps(line) + "\n" for line in lines))
        base = shutil.copytree(tiny_bert, here / "base")
        trained(system, base, here / "trained", lists)
        made[system] = here
    return made


@pytest.mark.parametrize("system", ["e2rank", "resrank"])
def test_base_and_adapted_folder_moved_together_can_be_opened(pair, tmp_path, system):
    for file in (pair[system] / "trained").rglob("*.json"):
        if "run" not in file.relative_to(pair[system]).parts:
            assert str(pair[system]) not in file.read_text(), file
    with Encoder.from_pretrained(pair[system] / "trained") as encoder:
        expected = encoder.encode_documents(["cats purr"])
    shutil.copytree(pair[system], tmp_path / "moved")
    (tmp_path / "link").symlink_to(tmp_path / "moved" / "trained")
    for place in (tmp_path / "moved" / "trained", tmp_path / "link"):
        with load_reranker(place) as reranker:
            np.testing.assert_array_equal(
                reranker.encoder.encode_documents(["cats purr"]), expected
            )
            assert reranker.encoder.weights_folder == tmp_path / "moved" / "base"


@pytest.mark.parametrize(("system", "kind"), [("e2rank", Encoder), ("resrank", ResRank)])
def test_without_its_base_the_error_says_how_to_make_a_portable_copy(pair, tmp_path, system, kind):
    alone = shutil.copytree(pair[system] / "trained", tmp_path / "alone")
    with pytest.raises(CheckpointError, match=r"no folder .*/base: put that model there.*save\("):
        load_reranker(alone)
    # What it says.
    with kind.from_pretrained(pair[system] / "trained") as model:
        copy = model.save(tmp_path / "copied" / "deep" / "copy")
    with load_reranker(copy.rename(tmp_path / "moved")) as reranker:
        assert reranker.encoder.encode_documents(["cats"]).shape == (1, 32)


def test_a_second_stage_names_the_encoder_of_the_first_from_where_it_is(pair, tmp_path):
    here = shutil.copytree(pair["resrank"], tmp_path / "here")
    second = trained("resrank", here / "trained", here / "runs" / "second", here / "lists.jsonl")
    said = json.loads((second / "e2rank.json").read_text())["encoder"]["base"]
    assert said == "../../base"
    moved = here.rename(tmp_path / "moved")
    with load_reranker(moved / "runs" / "second") as reranker:
        assert reranker.encoder.weights_folder == moved / "base"
