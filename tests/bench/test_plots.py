"""Pictures of a result are SVG, and the same for the same figures."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from e2rank_rag.bench.plots import draw


def test_each_drawn_part_gives_one_svg_with_its_labels(result, tmp_path):
    pytest.importorskip("matplotlib")
    written = draw(result, tmp_path)
    assert [path.name for path in written] == [
        f"{name}.svg" for name in ("encode", "query", "candidates", "depth", "engines")
    ]
    for path in written:
        assert ElementTree.parse(path).getroot().tag.endswith("svg")
    assert "e2rank_rag float32" in (tmp_path / "encode.svg").read_text()
    (first,) = draw({"parts": {"depth": result["parts"]["depth"]}}, tmp_path)
    before = first.read_bytes()
    draw({"parts": {"depth": result["parts"]["depth"]}}, tmp_path)
    assert first.read_bytes() == before
