"""What a process leaves open is closed in order."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = [ROOT, ROOT / "integrations" / "haystack", *os.environ.get("PYTHONPATH", "").split(":")]

OPENED = {
    "a store of ours": """\
from e2rank_rag.store import QdrantStore
kept = QdrantStore.open(sys.argv[1], "docs")
kept.prepare(2)
""",
    "a store of Haystack": """\
from haystack import Document
from haystack_integrations.common.e2rank.documents import DocumentText
from haystack_integrations.common.e2rank.stores import reader_of
from haystack_integrations.document_stores.qdrant import QdrantDocumentStore
given = QdrantDocumentStore(path=sys.argv[1], embedding_dim=2, progress_bar=False)
given.write_documents([Document(content="a", embedding=[1.0, 0.0])])
kept = reader_of(given, DocumentText())
assert kept.open().count() == 1
""",
}
KEEP = """
import builtins
builtins.kept = kept  # what is held here is collected last, when nothing can be imported any more
"""


@pytest.mark.parametrize("opened", list(OPENED))
def test_a_folder_store_that_nobody_closed_prints_nothing_at_exit(opened, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", "import sys\n" + OPENED[opened] + KEEP, str(tmp_path / "index")],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "PYTHONPATH": ":".join(map(str, SOURCES)),
            "HAYSTACK_TELEMETRY_ENABLED": "false",
        },
    )
    assert (done.returncode, done.stderr) == (0, "")
