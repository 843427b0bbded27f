"""What importing the package costs."""

from __future__ import annotations

import subprocess
import sys

import e2rank_rag

HEAVY = ["torch", "transformers", "haystack", "langchain_core", "qdrant_client"]


def test_importing_the_package_loads_no_framework():
    code = f"import sys, e2rank_rag; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_is_there():
    assert e2rank_rag.__version__
    assert [name for name in e2rank_rag.__all__ if not hasattr(e2rank_rag, name)] == []
