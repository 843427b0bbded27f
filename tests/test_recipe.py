"""Recipes read what folders hold, and write it as it was."""

from __future__ import annotations

from e2rank_rag.recipe import CrossEncoderRecipe


def test_files_call_cls_pooling_first():
    recipe = CrossEncoderRecipe(structure="encoder-only", input="text", pooling="first")
    assert recipe == CrossEncoderRecipe(structure="encoder-only", input="text", pooling="cls")
    assert recipe.pooling == "cls"
    assert recipe.model_dump(mode="json")["pooling"] == "first"
