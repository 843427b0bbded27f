"""Opening folders, with other processes beside."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from qdrant_client import QdrantClient

from e2rank_rag.errors import StoreError
from e2rank_rag.store import QdrantStore
from e2rank_rag.types import Document


def open_elsewhere(folder, code):
    """Run `code` in another process with `store` open on the folder."""
    script = (
        "import sys\n"
        "from e2rank_rag.store import QdrantStore\n"
        "store = QdrantStore.open(sys.argv[1], 'c')\n"
        f"{code}\n"
        "store.close()\n"
    )
    root = Path(__file__).parents[2]
    return subprocess.Popen(
        [sys.executable, "-c", script, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=root,
    )


def test_folder_open_in_another_process_is_refused(tmp_path):
    with open_elsewhere(tmp_path, "print('open', flush=True); sys.stdin.readline()") as other:
        assert other.stdout.readline() == "open\n"
        with pytest.raises(StoreError, match=f"{tmp_path} is open already, in another process"):
            QdrantStore.open(tmp_path, "c")
        other.communicate("\n", timeout=30)
    QdrantStore.open(tmp_path, "c").close()


def test_stores_of_one_folder_share_what_is_open_and_the_last_one_closes_it(tmp_path, monkeypatch):
    store = QdrantStore.open(tmp_path, "c")
    store.prepare(3)
    (tmp_path.parent / "link").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path.parent)
    others = [
        QdrantStore.open(Path(tmp_path.name), "c"),
        QdrantStore.open("link", "c"),
        QdrantStore({"path": str(tmp_path)}, "c"),
    ]
    store.upsert([Document("a", "text")], np.eye(1, 3, dtype=np.float32))
    assert [other.count() for other in others] == [1, 1, 1]
    folder = store.client._client
    store.close()
    store.close()
    assert [other.get(["a"])["a"].document.text for other in others] == ["text"] * 3
    for other in others:
        assert not folder.closed
        other.close()
    QdrantClient(path=str(tmp_path)).close()


def test_a_folder_that_was_deleted_and_made_anew_is_read_anew(tmp_path):
    folder = tmp_path / "index"
    forgotten = QdrantStore.open(folder, "c")
    forgotten.prepare(3)
    shutil.rmtree(folder)
    store = QdrantStore.open(folder, "c")
    assert not store.exists
    store.close()
    forgotten.close()


def test_a_folder_that_another_librarys_client_has_open_is_refused(tmp_path):
    client = QdrantClient(path=str(tmp_path))
    with pytest.raises(StoreError, match="another library's client"):
        QdrantStore.open(tmp_path, "d")
    QdrantStore(client, "d").prepare(3)
    client.close()


def test_threads_open_and_close_one_folder_at_any_time(tmp_path):
    first = QdrantStore.open(tmp_path, "c")
    first.prepare(3)
    first.close()

    def use(_):
        for _ in range(20):
            store = QdrantStore.open(tmp_path, "c")
            assert store.count() == 0
            store.close()

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(use, range(4)))


READ_ONLY = """
import os, sys
import portalocker
from e2rank_rag.errors import StoreError
from e2rank_rag.store import QdrantStore
if os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)  # root may write anywhere
try:
    QdrantStore.open(sys.argv[1], "c")
except StoreError as error:
    print(error)
"""


@pytest.mark.skipif(not hasattr(os, "setuid"), reason="needs POSIX users")
@pytest.mark.parametrize("filled", [False, True])
def test_read_only_folder_is_refused(filled):
    # Not tmp_path: its parents are closed to other users.
    with tempfile.TemporaryDirectory() as parent:
        os.chmod(parent, 0o755)
        folder = Path(parent, "index")
        folder.mkdir()
        if filled:
            store = QdrantStore.open(folder, "c")
            store.prepare(3)
            store.close()
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)
        done = subprocess.run(
            [sys.executable, "-c", READ_ONLY, str(folder)],
            capture_output=True,
            text=True,
            cwd=Path(__file__).parents[2],
            timeout=60,
        )
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o755)
    assert f"{folder} cannot be written" in done.stdout, done.stderr


@pytest.mark.parametrize("inside", [False, True])
def test_file_in_the_place_of_the_folder_is_refused(tmp_path, inside):
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(StoreError, match="a file is in the way"):
        QdrantStore.open(file / "index" if inside else file, "c")


def test_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "meta.json").write_text("not json")
    with pytest.raises(StoreError, match="no readable Qdrant folder"):
        QdrantStore.open(tmp_path, "c")


@pytest.mark.parametrize(
    "location",
    [
        "",
        "ftp://host",
        "localhost:6333",
        "qdrant.example:6334",
        "//host:6333",
        "localhost:6333/dashboard",
        "[::1]:6333",
        ":MEMORY:",
        " :memory: ",
    ],
)
def test_location_that_is_none_of_the_three_is_refused(location):
    with pytest.raises(ValueError, match="':memory:', a folder, or a URL"):
        QdrantStore.open(location, "c")


def test_api_key_for_a_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="api_key is for servers"):
        QdrantStore.open(tmp_path, "c", api_key="k")


def test_folder_above_the_size_warning_opens_without_it(tmp_path, monkeypatch):
    from qdrant_client.local.qdrant_local import QdrantLocal

    store = QdrantStore.open(tmp_path, "c")
    store.prepare(2)
    store.upsert([Document("a", "")], np.array([[1.0, 0.0]]))
    store.close()
    monkeypatch.setattr(QdrantLocal, "LARGE_DATA_THRESHOLD", 0)
    QdrantStore.open(tmp_path, "c").close()  # would raise: warnings are errors here
