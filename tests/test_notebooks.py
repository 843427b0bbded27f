"""The notebooks run as they stand, and show what they give when they run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")
pytest.importorskip("ipykernel")

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
IMPORT_ROOTS = (ROOT, ROOT / "integrations" / "haystack", ROOT / "integrations" / "langchain")
LIMIT_S = 75  # of processor time: a busy machine stretches the time on the clock
HANGS_S = 600
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
DECIMAL = re.compile(r"\d+\.\d+")
MACHINE_PATH = re.compile(r"(?<![\w.<])/(?:home|root|tmp|private|Users|usr|var|work)/")
LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")


def read(path):
    return nbformat.read(path, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook, kind):
    return [o for c in code_cells(notebook) for o in c.outputs if o.output_type == kind]


def shown_text(cell):
    """What a cell prints and shows as text, on lines without colour or the blanks of a table."""
    parts = [
        output.get("text", "") if output.output_type == "stream" else output.data["text/plain"]
        for output in cell.outputs
        if output.output_type != "error" and output.get("name") != "stderr"
    ]
    return " ".join(COLOUR.sub("", "".join(parts)).split())


def assert_same_text(kept, fresh):
    """The same but for the last digit of decimals, which may differ between machines."""
    assert DECIMAL.sub("#.#", fresh) == DECIMAL.sub("#.#", kept)
    for one, other in zip(DECIMAL.findall(kept), DECIMAL.findall(fresh), strict=True):
        last_digit = 10.0 ** -len(one.partition(".")[2])
        assert float(other) == pytest.approx(float(one), rel=0, abs=1.01 * last_digit), kept


@pytest.fixture(scope="module", params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request):
    return request.param


@pytest.fixture(scope="module")
def fresh(path, tmp_path_factory):
    """The notebook after a run in a new kernel: empty folders, no network."""
    home, place = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("place")
    notebook = read(path)
    notebook.cells.append(nbformat.v4.new_code_cell("import time; print(time.process_time())"))
    client = nbclient.NotebookClient(
        notebook,
        timeout=HANGS_S,
        allow_errors=True,
        coalesce_streams=True,
        resources={"metadata": {"path": str(place)}},
    )
    environment = {
        "PYTHONPATH": ":".join(map(str, IMPORT_ROOTS)),
        "PATH": "",
        "HOME": str(home),
        "HF_HUB_OFFLINE": "1",
        "HAYSTACK_TELEMETRY_ENABLED": "false",  # importing haystack would ask the network
    }
    client.execute(env=environment)
    return notebook


@pytest.mark.notebooks
def test_it_runs_from_top_to_bottom_offline_in_time(fresh):
    failed = [f"{error.ename}: {error.evalue}" for error in outputs(fresh, "error")]
    assert failed == []
    assert float(fresh.cells[-1].outputs[0].text) < LIMIT_S


@pytest.mark.notebooks
def test_what_is_kept_is_what_a_run_shows(path, fresh):
    for kept, new in zip(code_cells(read(path)), code_cells(fresh)[:-1], strict=True):
        assert_same_text(shown_text(kept), shown_text(new))


def test_kept_outputs_are_of_one_clean_run(path):
    kept = read(path)
    cells = code_cells(kept)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert outputs(kept, "error") == []
    assert [o.text for o in outputs(kept, "stream") if o.name == "stderr"] == []
    assert all("execution" not in cell.metadata for cell in cells)  # times of somebody's machine


def test_kept_outputs_name_no_place_of_a_machine(path):
    for cell in code_cells(read(path)):
        said = [{**o, "data": {**o.get("data", {}), "image/png": None}} for o in cell.outputs]
        assert MACHINE_PATH.findall(json.dumps(said, ensure_ascii=False)) == []


def test_links_lead_to_files(path):
    for cell in read(path).cells:
        for target in LINK.findall(cell.source) if cell.cell_type == "markdown" else ():
            assert target.startswith("http") or (FOLDER / target).exists(), target


def test_the_index_names_every_notebook():
    index = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert [p.name for p in NOTEBOOKS if f"]({p.name})" not in index] == []
