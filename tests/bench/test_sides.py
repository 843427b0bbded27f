"""A side answers from a process of its own, and says what went wrong there."""

from __future__ import annotations

import os

import pytest

from e2rank_rag.bench.sides import Missing, ProcessSide, Sides, builder
from tests.bench.sides import Here

BUILD = "e2rank_rag.bench.peak:torch_products"


def test_a_side_computes_in_its_own_process_with_its_own_threads():
    side = ProcessSide(BUILD, {}, {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"})
    assert side.about == {"threads": 1}
    found = side(dtype="float32", size=8, seconds=0.0)
    assert found.result > 0
    assert found.wall > 0
    with pytest.raises(RuntimeError, match=r"peak:torch_products: AttributeError: .*float31"):
        side(dtype="float31", size=8, seconds=0.0)
    with pytest.raises(RuntimeError, match="ended with code"):
        side(dtype="float32", size=8, seconds=0.0)
    process = side._process
    side.close()
    side.close()
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)


def test_a_missing_package_leaves_a_side_out_and_is_named():
    with Sides(ProcessSide) as sides:
        assert sides.add("theirs", "e2rank_rag.bench.no_such_part:theirs", {}) is None
    assert sides.missing == {"theirs": "No module named 'e2rank_rag.bench.no_such_part'"}
    assert not sides.started


def test_only_functions_of_this_package_build_sides():
    with pytest.raises(ValueError, match="os:system"):
        builder("os:system")
    with pytest.raises(Missing):
        Here("e2rank_rag.bench.no_such_part:x", {}, {})


def test_sides_are_closed_together_when_one_fails():
    closed = []

    class Side:
        def __init__(self, build, options, environment):
            if build == "fails":
                raise RuntimeError("no room")
            self.about = {"build": build, **environment}

        def close(self):
            closed.append(self.about["build"])

    def both():
        with Sides(Side) as sides:
            sides.add("one", "a", {}, {"X": "1"})
            assert sides.about() == {"one": {"build": "a", "X": "1"}}
            sides.add("two", "fails", {})

    with pytest.raises(RuntimeError, match="no room"):
        both()
    assert closed == ["a"]
