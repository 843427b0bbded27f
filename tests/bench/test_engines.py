"""Every engine is searched in both ways."""

from __future__ import annotations


def test_engines_are_searched_by_vector_and_by_words_and_a_missing_server_is_said(result):
    part = result["parts"]["engines"]
    assert part["missing"] == {"server": "no --url"}
    for engines in part["by_documents"].values():
        names = {f"{name} {kind}" for name in ("memory", "folder") for kind in ("vector", "hybrid")}
        assert engines.keys() == names
