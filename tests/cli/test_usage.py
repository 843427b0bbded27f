"""Help, and wrong usage."""

from __future__ import annotations

import subprocess
import sys

import pytest

COMMANDS = [
    "demo",
    "index",
    "search",
    "evaluate",
    "check",
    "report",
    "verify",
    "mine",
    "label",
    "train",
    "adapt",
    "average",
    "bench",
]


def test_help_lists_every_command_and_the_exit_codes(run):
    code, out, _ = run("--help")
    assert code == 0
    assert [command for command in COMMANDS if f" {command} " not in out] == []
    assert "Exit codes: 0 done, 1 failed, 2 wrong usage." in out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(run, command):
    code, out, _ = run(command, "--help")
    assert code == 0
    assert f"Usage: e2rank {command}" in out


def test_help_needs_no_torch():
    helps = [["--help"], *([command, "--help"] for command in COMMANDS), ["train", "--help-config"]]
    script = (
        "import sys\n"
        "from e2rank_rag.cli import main\n"
        f"for arguments in {helps}:\n"
        "    sys.argv = ['e2rank', *arguments]\n"
        "    try: main()\n"
        "    except SystemExit as end: assert end.code == 0\n"
        "print(sorted({'torch', 'transformers', 'qdrant_client'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nope"],
        ["search"],
        ["search", "q"],
        ["search", "q", "--index", "i", "--top-k", "0"],
        ["search", "q", "--index", "i", "--expand", "--no-rerank"],
        ["search", "q", "--index", "i", "--filter", "year"],
        ["evaluate", "folder", "--systems", "rrf"],
        ["evaluate", "folder", "--systems", ","],
        ["evaluate", "folder", "--measures", "nDCG@5,accuracy"],
    ],
)
def test_wrong_usage_is_exit_code_2(run, arguments):
    code, _, err = run(*arguments)
    assert code == 2
    assert "Traceback" not in err
