"""What a process leaves open is closed in order."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = [ROOT, ROOT / "integrations" / "haystack", *os.environ.get("PYTHONPATH", "").split(":")]

OPENED = """\
import builtins, sys

from haystack import Document
from haystack_integrations.common.e2rank.documents import DocumentText
from haystack_integrations.common.e2rank.stores import reader_of
from haystack_integrations.document_stores.qdrant import QdrantDocumentStore

from e2rank_rag.store import QdrantStore

ours = QdrantStore.open(sys.argv[1], "docs")
ours.prepare(2)
given = QdrantDocumentStore(path=sys.argv[2], embedding_dim=2, progress_bar=False)
given.write_documents([Document(content="a", embedding=[1.0, 0.0])])
of_haystack = reader_of(given, DocumentText())
assert of_haystack.open().count() == 1
# What is held here is collected last, when nothing can be imported any more.
builtins.kept = ours, of_haystack
"""


def test_folder_stores_that_nobody_closed_print_nothing_at_exit(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", OPENED, str(tmp_path / "ours"), str(tmp_path / "haystack")],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "PYTHONPATH": ":".join(map(str, SOURCES)),
            "HAYSTACK_TELEMETRY_ENABLED": "false",
        },
    )
    assert (done.returncode, done.stderr) == (0, "")
