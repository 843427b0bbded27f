"""Folders that lost a part of themselves: an error, or the same answers as before."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import sqlite3

import numpy as np
import pytest
from qdrant_client import QdrantClient

from e2rank_rag.errors import CheckpointError, StoredVectorMismatch, StoreError
from e2rank_rag.models.encoder import Encoder
from e2rank_rag.store import QdrantStore
from e2rank_rag.types import Document

DOCUMENTS = [Document(f"d{n}", f"text {n}", {"n": n}) for n in range(60)]
VECTORS = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
QUERY = np.array([1, 0, 0], np.float32)
DEEP = "[" * 100_000


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with 60 documents, and what a search there gives."""
    folder = tmp_path_factory.mktemp("whole") / "index"
    store = QdrantStore.open(folder, "docs")
    store.prepare(3, fingerprint="f1", model="m1")
    store.upsert(DOCUMENTS, VECTORS)
    answers = store.search(QUERY, top_k=60)
    store.close()
    return folder, answers


def rewritten(change):
    """A damage to the JSON of meta.json."""

    def damage(file):
        meta = json.loads(file.read_text())
        changed = change(meta)
        file.write_text(json.dumps(meta if changed is None else changed))

    return damage


def config(**fields):
    return rewritten(lambda meta: meta["collections"]["docs"].update(fields))


def vectors(**fields):
    return rewritten(lambda meta: meta["collections"]["docs"]["vectors"].update(fields))


def record(value):
    return config(metadata={"e2rank": value})


def cut(share):
    return lambda file: file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])


def garbage(start, end):
    """Random bytes in place of a part of the file."""

    def damage(file):
        content = bytearray(file.read_bytes())
        part = slice(int(start * len(content)), int(end * len(content)))
        content[part] = np.random.default_rng(1).bytes(len(content[part]))
        file.write_bytes(content)

    return damage


def sql(*statements):
    def damage(file):
        with sqlite3.connect(file) as connection:
            for statement in statements:
                connection.execute(statement)
        connection.close()

    return damage


def search(folder):
    with contextlib.closing(QdrantStore.open(folder, "docs")) as store:
        return store.search(QUERY, top_k=60)


def prepare(folder, fingerprint):
    with contextlib.closing(QdrantStore.open(folder, "docs")) as store:
        store.prepare(3, fingerprint=fingerprint)


def same(hits, others):
    """The same documents in the same order, scores but for their last digits."""
    assert [hit.score for hit in hits] == pytest.approx([hit.score for hit in others], abs=1e-6)
    return [hit.document for hit in hits] == [hit.document for hit in others]


def replaced_by_a_folder(file):
    file.unlink()
    file.mkdir()


ANY = {
    "deleted": lambda file: file.unlink(),
    "empty": lambda file: file.write_bytes(b""),
    "cut in half": cut(0.5),
    "a folder": replaced_by_a_folder,
    "garbage": garbage(0, 1),
    "zeros": lambda file: file.write_bytes(b"\0" * file.stat().st_size),
}
META = {
    "deep": lambda file: file.write_text(DEEP),
    "not UTF-8": lambda file: file.write_bytes(b"\xff\xfe\xff"),
    **{
        name: rewritten(lambda meta, value=value: value)
        for name, value in {
            "a list": [],
            "a number": 5,
            "null": "null",
            "no keys": {},
        }.items()
    },
    "collections a list": rewritten(lambda meta: meta.update(collections=[])),
    "collections null": rewritten(lambda meta: meta.update(collections=None)),
    "no collections": rewritten(lambda meta: meta.update(collections={})),
    "another name": rewritten(
        lambda meta: meta.update(collections={"other": meta["collections"]["docs"]})
    ),
    "a number for a collection": rewritten(lambda meta: meta["collections"].update(docs=5)),
    "null for a collection": rewritten(lambda meta: meta["collections"].update(docs=None)),
    "aliases null": rewritten(lambda meta: meta.update(aliases=None)),
    "aliases a list": rewritten(lambda meta: meta.update(aliases=["docs"])),
    "an alias of nothing": rewritten(lambda meta: meta.update(aliases={"a": "gone"})),
    "an alias of a list": rewritten(lambda meta: meta.update(aliases={"a": ["docs"]})),
    "no aliases": rewritten(lambda meta: meta.pop("aliases") and None),
    "text_indexes a number": rewritten(lambda meta: meta.update(text_indexes=5)),
    "text_indexes of nothing": rewritten(lambda meta: meta.update(text_indexes={"gone": {}})),
    "vectors null": config(vectors=None),
    "vectors empty": config(vectors={}),
    "vectors a number": config(vectors=5),
    "size a text": vectors(size="three"),
    "size another": vectors(size=4),
    "size negative": vectors(size=-1),
    "size enormous": vectors(size=10**30),
    "distance unknown": vectors(distance="Near"),
    "distance another": vectors(distance="Euclid"),
    "metadata a number": config(metadata=5),
    "record a number": record(5),
    "record a list": record(["f1"]),
    "fingerprint a number": record({"fingerprint": 5, "dim": 3}),
    "fingerprint a list": record({"fingerprint": ["f1"], "dim": 3}),
    "model a number": record({"fingerprint": "f1", "model": 5}),
    "record of another dim": record({"fingerprint": "f1", "dim": 4}),
}
STORAGE = {
    "garbage at the start": garbage(0, 0.05),
    "garbage in the middle": garbage(0.4, 0.6),
    "garbage at the end": garbage(0.7, 1),
    "a byte cut off": lambda file: file.write_bytes(file.read_bytes()[:-1]),
    "no table": sql("DROP TABLE points"),
    "another table": sql("DROP TABLE points", "CREATE TABLE points (id TEXT)"),
    "points null": sql("UPDATE points SET point = NULL"),
    "a point a text": sql("UPDATE points SET point = 'text' WHERE rowid = 3"),
    "a point a number": sql("UPDATE points SET point = 5 WHERE rowid = 3"),
    "a point empty": sql("UPDATE points SET point = x'' WHERE rowid = 3"),
    "a point None": sql("UPDATE points SET point = x'80044e2e' WHERE rowid = 3"),
    "a point of another module": sql(
        "UPDATE points SET point = x'6367" + b"one\nThing\n.".hex() + "' WHERE rowid = 3"
    ),
}
FILES = {"meta": "meta.json", "storage": "collection/docs/storage.sqlite"}
DAMAGES = [
    *((file, damage, name) for file in FILES for name, damage in ANY.items()),
    *(("meta", damage, name) for name, damage in META.items()),
    *(("storage", damage, name) for name, damage in STORAGE.items()),
]


@pytest.mark.parametrize(
    ("file", "damage"),
    [damage[:2] for damage in DAMAGES],
    ids=[f"{file}: {name}" for file, _, name in DAMAGES],
)
def test_an_index_that_lost_a_part_of_itself_is_not_an_empty_or_a_new_one(
    whole, tmp_path, file, damage
):
    folder, answers = whole
    broken = tmp_path / "index"
    shutil.copytree(folder, broken)
    damage(broken / FILES[file])
    try:
        found = search(broken)
    except StoreError as error:
        said = str(error)
    else:
        assert same(found, answers)
        said = str(broken)
    assert str(broken) in said
    with pytest.raises((StoreError, StoredVectorMismatch), match=re.escape(str(broken))):
        prepare(broken, "f2")


@pytest.mark.parametrize("name", [".lock", "meta.json.tmp"])
@pytest.mark.parametrize("content", [None, b"", b"\0" * 100])
def test_files_that_hold_nothing_may_be_lost(whole, tmp_path, name, content):
    folder, answers = whole
    broken = tmp_path / "index"
    shutil.copytree(folder, broken)
    (broken / name).unlink(missing_ok=True)
    if content is not None:
        (broken / name).write_bytes(content)
    assert same(search(broken), answers)


def test_a_new_collection_does_not_begin_with_the_documents_of_an_earlier_one(whole, tmp_path):
    folder, _ = whole
    broken = tmp_path / "index"
    shutil.copytree(folder, broken)
    (broken / "meta.json").unlink()
    client = QdrantClient(path=str(broken))  # opened by somebody else
    store = QdrantStore(client, "docs")
    for _ in range(2):
        with pytest.raises(StoreError, match="holds 60 documents of an earlier one"):
            store.prepare(3, fingerprint="f2")
    assert not store.exists
    client.close()


def test_a_new_folder_and_an_empty_collection_are_no_damage(tmp_path):
    for _ in range(2):
        store = QdrantStore.open(tmp_path / "index", "docs")
        store.prepare(3, fingerprint="f1")
        assert store.count() == 0
        store.close()


@pytest.mark.parametrize("content", [DEEP, "[]", "5", "null", "", "{", '{"prompts": ' + DEEP])
def test_a_damaged_e2rank_json_is_an_error_that_names_it(bert, tmp_path, content):
    folder = bert.save(tmp_path / "model")
    (folder / "e2rank.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"e2rank\.json"):
        Encoder.from_pretrained(str(folder))
