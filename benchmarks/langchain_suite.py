"""LangChain's standard suite for vector stores, on our store and on the one of langchain-qdrant.

    python benchmarks/langchain_suite.py

Every test has an empty collection in memory and the suite's own embeddings. The suite names
documents "1" and "foo", Qdrant wants UUIDs: the third run turns those names into UUIDs on the way,
to see what else fails. Writes benchmarks/results/langchain_suite.json.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from textwrap import shorten
from typing import Any
from xml.etree import ElementTree

import pytest
from langchain_core.documents import Document
from langchain_core.vectorstores import VectorStore
from langchain_e2rank import E2RankVectorStore
from langchain_qdrant import QdrantVectorStore
from langchain_tests.integration_tests import VectorStoreIntegrationTests
from qdrant_client import QdrantClient, models

RESULTS = Path(__file__).parent / "results" / "langchain_suite.json"
PACKAGES = ["langchain-core", "langchain-tests", "langchain-qdrant", "qdrant-client"]


class TestOurs(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self) -> Iterator[VectorStore]:
        store = E2RankVectorStore(self.get_embeddings())
        yield store
        store.close()


class TestStock(VectorStoreIntegrationTests):
    kind = QdrantVectorStore

    @pytest.fixture
    def vectorstore(self) -> Iterator[VectorStore]:
        client = QdrantClient(":memory:")
        embeddings = self.get_embeddings()
        size = len(embeddings.embed_query("any"))
        vectors = models.VectorParams(size=size, distance=models.Distance.COSINE)
        client.create_collection("documents", vectors)
        yield self.kind(client, "documents", embeddings)
        client.close()


class WithUuids(QdrantVectorStore):
    """Takes any ids, as `e2rank_rag` does."""

    def add_texts(
        self, texts: Iterable[str], metadatas: Any = None, ids: Any = None, **options: Any
    ) -> list[str | int]:
        written = super().add_texts(texts, metadatas, ids and as_uuids(ids), **options)
        return [given or made for given, made in zip(ids or written, written, strict=True)]

    def delete(self, ids: Any = None, **options: Any) -> bool | None:
        return super().delete(as_uuids(ids), **options)

    def get_by_ids(self, ids: Sequence[str | int], /) -> list[Document]:
        return super().get_by_ids(as_uuids(ids))


def as_uuids(ids: Sequence[Any]) -> list[Any]:
    return [uuid.uuid5(uuid.NAMESPACE_OID, id).hex if id and len(id) < 32 else id for id in ids]


class TestStockWithUuids(TestStock):
    kind = WithUuids


def outcomes() -> dict[str, dict[str, str]]:
    """By class and test: `passed`, or how it failed."""
    found: dict[str, dict[str, str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        options = ["-o", "filterwarnings=default", "-p", "no:cacheprovider", f"--junitxml={report}"]
        command = [sys.executable, "-m", "pytest", *options, __file__]
        subprocess.run(command, stdout=subprocess.DEVNULL)
        for case in ElementTree.parse(report).iter("testcase"):
            bad = next((part for part in case if part.get("message")), None)
            said = "passed" if bad is None else f"{bad.tag}: {shorten(bad.get('message', ''), 400)}"
            kind = case.get("classname", "").split(".")[-1].removeprefix("Test")
            found.setdefault(kind, {})[case.get("name", "")] = said
    return found


def main() -> None:
    tests = outcomes()
    counts = {kind: Counter(s.split(":")[0] for s in said.values()) for kind, said in tests.items()}
    versions = {name: version(name) for name in PACKAGES}
    result = {"versions": versions, "outcomes": counts, "tests": tests}
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    for name in tests["Ours"]:
        print(f"{name:<48}", *(shorten(said[name], 48).ljust(48) for said in tests.values()))
    print(json.dumps(counts, indent=2))


if __name__ == "__main__":
    main()
