"""What the README says runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def python_blocks(path: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), flags=re.DOTALL)


def test_the_first_example_of_the_readme_runs_as_it_stands(tmp_path):
    example = python_blocks(ROOT / "README.md")[0]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", example],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "", "HOME": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    scored = [line.split(" ", 1) for line in done.stdout.splitlines()]
    assert {text for _, text in scored} == {
        "Vitamin D did not prevent falls in older adults.",
        "Exercise training prevented falls in older adults.",
    }
    assert float(scored[0][0]) >= float(scored[1][0])


@pytest.mark.parametrize("framework", ["haystack", "langchain"])
def test_the_framework_examples_of_the_readme_run_after_the_first(tmp_path, framework):
    blocks = python_blocks(ROOT / "README.md")
    example = next(block for block in blocks[1:] if framework in block)
    paths = [ROOT, ROOT / "integrations" / "haystack", ROOT / "integrations" / "langchain"]
    environment = {
        "PYTHONPATH": ":".join(map(str, paths)),
        "PATH": "",
        "HOME": str(tmp_path),
        "HAYSTACK_TELEMETRY_ENABLED": "false",
    }
    first = blocks[0]
    last = "assert len(found['ranker']['documents']) == 2" if framework == "haystack" else ""
    done = subprocess.run(
        [sys.executable, "-c", f"{first}\n{example}\n{last}"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
    )
    assert done.returncode == 0, done.stderr


def test_every_link_of_the_documents_leads_to_a_file():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name}: {target}"
