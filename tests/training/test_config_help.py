"""Every field of a configuration is described, once, where it is declared."""

from __future__ import annotations

import pytest

from e2rank_rag.training.config import STAGES
from e2rank_rag.training.config_help import config_help


def test_the_help_has_every_field_of_every_stage():
    common, *stages = config_help().split("\nstage: ")
    assert [text.partition("\n")[0] for text in stages] == list(STAGES)
    for text, stage in zip(stages, STAGES.values(), strict=True):
        for name in stage.model_fields.keys() - {"stage"}:
            assert f"  {name} (" in common + text, name
    assert "  data.first_negative (0): " in common
    assert "  prompt.depths ([20]): " in stages[list(STAGES).index("listwise")]


@pytest.mark.parametrize("stage", STAGES.values())
def test_every_field_has_a_description(stage):
    fields = stage.model_fields.items()
    assert [name for name, field in fields if name != "stage" and not field.description] == []
