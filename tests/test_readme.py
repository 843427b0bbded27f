"""The README from the top, in an empty folder: every block runs and prints what the README shows.

A `text` block, or the comment behind a `print`, is what a Python block prints. `pip` and `make`
lines are only checked for form, because they set up environments.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from e2rank_rag import cli

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")

BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)

# One Python session in a new process, as of someone who pastes block after block; `sh` blocks run
# in between.
SESSION = """
import contextlib, io, json, subprocess, sys
names, outputs = {"__name__": "__main__"}, []
for language, block in json.load(sys.stdin):
    printed = io.StringIO()
    if language == "python":
        with contextlib.redirect_stdout(printed):
            exec(compile(block, "README.md", "exec"), names)
        outputs.append(printed.getvalue())
    else:
        subprocess.run(["bash", "-euc", block], check=True, stdout=sys.stderr)
print(json.dumps(outputs))
"""


def test_every_block_runs_in_an_empty_folder_and_prints_what_the_readme_shows(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    names, outputs = {"__name__": "__main__"}, []
    for kind, block in filter(_runs, BLOCKS):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            if kind == "python":
                exec(compile(block, "README.md", "exec"), names)
                outputs.append(printed.getvalue())
            else:
                _run_commands(block, monkeypatch)
    assert outputs == _shown()
    for value in names.values():
        if hasattr(value, "close") and not isinstance(value, type):
            value.close()


@pytest.mark.slow
def test_every_block_runs_in_a_new_process_with_nothing_in_its_home(tmp_path):
    command = tmp_path / "bin" / "e2rank"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m e2rank_rag.cli "$@"\n')
    command.chmod(0o755)
    empty = tmp_path / "empty"
    empty.mkdir()
    paths = [ROOT, ROOT / "integrations" / "haystack", ROOT / "integrations" / "langchain"]
    done = subprocess.run(
        [sys.executable, "-c", SESSION],
        input=json.dumps(list(filter(_runs, BLOCKS))),
        capture_output=True,
        text=True,
        cwd=empty,
        env={
            "PATH": f"{command.parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join(map(str, paths)),
            "HOME": str(empty),
            "HAYSTACK_TELEMETRY_ENABLED": "false",
        },
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == _shown()


def test_the_install_line_names_extras_that_exist():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (line,) = [block.strip() for kind, block in BLOCKS if block.startswith("pip install")]
    extras = re.fullmatch(r"pip install '\.\[([\w,]+)\]'", line)
    assert extras, line
    assert set(extras[1].split(",")) <= project["optional-dependencies"].keys()


def test_every_make_target_exists():
    targets = set(re.findall(r"`make ([\w-]+)", README))
    known = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert targets
    assert targets <= set(known)


def test_the_readme_is_short():
    assert len(README.splitlines()) < 120


def _run_commands(block: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for line in block.splitlines():
        monkeypatch.setattr(sys, "argv", shlex.split(line, comments=True))
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert not ended.value.code, line


def _shown() -> list[str]:
    """What the README shows below each Python block; nothing where it shows nothing."""
    shown: list[str] = []
    for kind, block in BLOCKS:
        if kind == "text":
            shown[-1] = block
        elif kind == "python":
            shown.append("".join(f"{line}\n" for line in re.findall(r"print\(.*\)  # (.+)", block)))
    return shown


def _runs(kind_and_block: tuple[str, str]) -> bool:
    kind, block = kind_and_block
    return kind == "python" or (kind == "sh" and block.startswith("e2rank"))
