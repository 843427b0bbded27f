"""What the pages name exists: linked headings, files, imported names, commands and settings."""

from __future__ import annotations

import ast
import importlib
import re
import runpy
import shlex
from pathlib import Path

import pytest
import typer
import yaml

from e2rank_rag.cli import app
from e2rank_rag.training.config import STAGES

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "notebooks" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]

ASYNC_AST = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT | ast.PyCF_ONLY_AST


def page_name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_every_link_leads_to_a_file_and_to_a_heading_in_it(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith("http"):
            continue
        name, _, anchor = target.partition("#")
        linked = page.parent / name if name else page
        assert linked.exists(), target
        if anchor:
            assert anchor in anchors(linked), target


def test_every_page_is_in_the_navigation_of_the_site():
    named = set(re.findall(r"([\w-]+\.md)", (ROOT / "mkdocs.yml").read_text(encoding="utf-8")))
    assert named == {page.name for page in (ROOT / "docs").glob("*.md")}


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_every_file_that_a_page_names_exists(page):
    folders = "e2rank_rag|benchmarks|tests|scripts|notebooks|integrations"
    for path in re.findall(rf"`((?:{folders})/[\w./-]*)`", page.read_text(encoding="utf-8")):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_every_name_that_a_page_imports_from_us_exists(page):
    for block in blocks(page, "python"):
        for node in ast.walk(compile(block, page.name, "exec", ASYNC_AST)):
            if isinstance(node, ast.ImportFrom) and "e2rank" in str(node.module):
                module = importlib.import_module(str(node.module))
                assert not [each.name for each in node.names if not hasattr(module, each.name)]


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_every_command_that_a_page_shows_is_one_that_the_command_line_takes(page):
    group = typer.main.get_command(app)
    for block in blocks(page, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["e2rank"]:
                command = group.get_command(typer.Context(group), words[1])
                command.make_context(words[1], words[2:])


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_every_configuration_that_a_page_shows_is_valid(page):
    for block in blocks(page, "yaml"):
        settings = yaml.safe_load(block)
        STAGES[settings["stage"]].model_validate(settings)


def test_the_configuration_page_is_what_its_script_writes():
    written = runpy.run_path(str(ROOT / "scripts" / "configuration_page.py"))["page"]()
    assert (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8") == written, (
        "run: python scripts/configuration_page.py"
    )


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of a page in one language."""
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as both GitHub and mkdocs make them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h).strip().lower().replace(" ", "-") for h in headings}
