"""What importing the package costs, and that all it imports is declared."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import e2rank_rag

HEAVY = ["torch", "transformers", "haystack", "langchain_core", "qdrant_client"]


def test_importing_the_package_loads_no_framework():
    code = f"import sys, e2rank_rag; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_is_there():
    assert e2rank_rag.__version__
    assert [name for name in e2rank_rag.__all__ if not hasattr(e2rank_rag, name)] == []


def imported_modules(folder):
    """Names of the modules that the files of a folder import, the first part of each."""
    nodes = [
        node for path in folder.rglob("*.py") for node in ast.walk(ast.parse(path.read_text()))
    ]
    imports = [alias.name for n in nodes if isinstance(n, ast.Import) for alias in n.names]
    froms = [n.module for n in nodes if isinstance(n, ast.ImportFrom) and not n.level]
    return {name.partition(".")[0] for name in [*imports, *froms]} - sys.stdlib_module_names


# What `e2rank bench` measures where it is installed, and names where it is not.
COMPARED = {
    "haystack-ai",
    "langchain-classic",
    "langchain-core",
    "langchain-qdrant",
    "sentence-transformers",
}


@pytest.fixture(scope="module")
def distributions():
    """The names of the installed distributions, by module."""
    return packages_distributions()


@pytest.mark.parametrize(
    ("folder", "extras"),
    [
        ("e2rank_rag", ["plots", "mteb"]),
        ("integrations/haystack", ["haystack"]),
        ("integrations/langchain", ["langchain"]),
    ],
)
def test_what_is_imported_is_declared(folder, extras, distributions):
    root = Path(__file__).parent.parent
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    lines = [
        *project["dependencies"],
        *(line for extra in extras for line in project["optional-dependencies"][extra]),
    ]
    declared = {canonicalize_name(Requirement(line).name) for line in lines}
    if folder == "e2rank_rag":
        declared |= COMPARED
    own = {"e2rank_rag", "haystack_integrations", "langchain_e2rank"}
    undeclared = {
        name: distributions.get(name)
        for name in imported_modules(root / folder) - own
        # A module that is not installed, such as mteb, is taken to have its own name.
        if not {canonicalize_name(dist) for dist in distributions.get(name, [name])} & declared
    }
    assert undeclared == {}
