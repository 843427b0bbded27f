"""One result of all parts at the tiniest size fits into JSON, and has tables for each part."""

from __future__ import annotations

import json

from e2rank_rag.bench import FORMAT, PARTS, tables


def test_a_result_names_what_it_was_measured_on(result):
    assert json.loads(json.dumps(result)) == result
    assert result["format"] == FORMAT
    assert list(result["parts"]) == [*PARTS]
    assert result["threads"] == 1
    assert result["machine"]["cores"] > 0
    assert all(value > 0 for peak in result["peak_gflops"].values() for value in peak.values())


def test_every_part_has_tables(result):
    made = [table.title for table in tables(result)]
    assert made[0] == "Machine"
    assert len(made) > len(PARTS)
    assert all("None" not in cell for table in tables(result) for row in table.rows for cell in row)
