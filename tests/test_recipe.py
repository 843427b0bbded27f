"""Recipes read what folders hold, and write it as it was."""

from __future__ import annotations

import pytest

from e2rank_rag.evidence import Evidence
from e2rank_rag.prompts import Prompts
from e2rank_rag.recipe import CrossEncoderRecipe, Recipe


def test_files_call_cls_pooling_first():
    recipe = CrossEncoderRecipe(structure="encoder-only", input="text", pooling="first")
    assert recipe == CrossEncoderRecipe(structure="encoder-only", input="text", pooling="cls")
    assert recipe.pooling == "cls"
    assert recipe.model_dump(mode="json")["pooling"] == "first"


PLAIN = Recipe(pooling="mean", prompts=Prompts(query="{query}", document="{document}"))


def test_a_recipe_of_before_has_no_evidence():
    stored = PLAIN.model_dump(mode="json")
    del stored["evidence"]
    assert Recipe.model_validate(stored) == PLAIN
    assert PLAIN.evidence is None


def test_evidence_is_kept_and_changes_no_document_vector():
    evidence = Evidence(words=0.1, expansion=0.0, language="german")
    recipe = PLAIN.model_copy(update={"evidence": evidence})
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe
    assert recipe.document_fingerprint("w") == PLAIN.document_fingerprint("w")


def test_a_recipe_with_an_unknown_language_is_refused():
    stored = {**PLAIN.model_dump(mode="json"), "evidence": {"language": "klingon"}}
    with pytest.raises(ValueError, match=r"(?s)evidence.language.*language must be one of arabic"):
        Recipe.model_validate(stored)
