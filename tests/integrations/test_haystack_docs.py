"""What docs/haystack.md shows runs, and its tables name every parameter."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
from haystack_integrations.components.embedders.e2rank import (
    E2RankDocumentEmbedder,
    E2RankTextEmbedder,
)
from haystack_integrations.components.rankers.e2rank import E2RankRanker
from haystack_integrations.components.retrievers.e2rank import E2RankRetriever

PAGE = Path(__file__).parents[2] / "docs" / "haystack.md"


def test_the_page_runs_from_top_to_bottom(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    exec(compile("\n".join(blocks), str(PAGE), "exec"), {"__name__": "__main__"})
    *ranked, meta = capsys.readouterr().out.splitlines()
    assert [line.split(")", 1)[1].split()[0] for line in ranked] == ["Exercise", "Vitamin"]
    assert "'reused': 3" in meta


@pytest.mark.parametrize(
    "component", [E2RankDocumentEmbedder, E2RankTextEmbedder, E2RankRanker, E2RankRetriever]
)
def test_every_parameter_is_in_a_table(component):
    page = PAGE.read_text(encoding="utf-8")
    names = list(inspect.signature(component.__init__).parameters)[1:]
    assert not [name for name in names if not re.search(rf"`{name}\b", page)]
