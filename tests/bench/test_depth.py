"""What a prompt of each depth holds."""

from __future__ import annotations

from tests.bench.sides import TINY


def test_a_deeper_prompt_holds_more_documents_until_no_more_fit(result):
    by_depth = result["parts"]["depth"]["by_depth"]
    assert [*by_depth] == [str(depth) for depth in TINY.depths]
    assert by_depth["0"]["documents"] == 0
    assert 0 < by_depth["2"]["documents"] <= 2
    assert (
        by_depth["0"]["tokens"] < by_depth["2"]["tokens"] <= result["parts"]["depth"]["positions"]
    )
