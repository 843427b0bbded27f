"""`e2rank verify`."""

from __future__ import annotations

import re

from e2rank_rag.verify import TOLERANCE


def test_verify_shows_both_tables_and_fails_for_random_weights(run, saved_qwen3):
    code, out, err = run("verify", saved_qwen3)
    assert code == 1
    for row in ("published: plain, vLLM", "published: listwise", "ours: plain", "ours: listwise"):
        assert row in out
    assert re.search(
        rf"error: the cosines differ from the published ones: largest difference \d\.\d+, "
        rf"tolerance {TOLERANCE}",
        err,
    )


def test_verify_refuses_other_models_with_the_reason(run):
    code, out, err = run("verify", "minilm")
    assert (code, out) == (1, "")
    assert "error: minilm does not encode like the released E2Rank models" in err
