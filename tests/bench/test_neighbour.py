"""Encoding beside a busy process."""

from __future__ import annotations

import threading

import pytest

from e2rank_rag.bench.neighbour import BESIDE, QUIET, SIDES, busy, cores_left


def test_each_side_encodes_alone_and_beside_the_neighbour(result):
    part = result["parts"]["neighbour"]
    assert part["sides"].keys() == SIDES.keys()
    for row in part["sides"].values():
        assert row["documents_per_second"].keys() == {QUIET, BESIDE}
        assert row["share_of_what_is_left"]["min"] > 0


@pytest.mark.parametrize(("cores", "left"), [(1, 0.5), (1.5, 0.75), (2, 1), (8, 7)])
def test_a_neighbour_leaves_all_but_one_core(cores, left):
    assert cores_left(cores) == left


def test_the_neighbour_works_only_when_told_to():
    before = threading.active_count()
    _, answer = busy()
    answer(working=True)
    assert threading.active_count() == before + 1
    (thread,) = [each for each in threading.enumerate() if each.name.endswith("(turn)")]
    answer(working=False)
    thread.join(10)
    assert not thread.is_alive()
