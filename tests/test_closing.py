"""A `with` closes what it opened, whatever happens in it."""

from __future__ import annotations

import pytest

from e2rank_rag.closing import Closable


class Door(Closable):
    shut = 0

    def close(self):
        self.shut += 1


def test_the_end_of_a_with_closes():
    with Door() as door:
        assert door.shut == 0
    assert door.shut == 1


def test_an_error_in_it_closes_too_and_goes_on():
    door = Door()
    with pytest.raises(ValueError, match="inside"), door:
        raise ValueError("inside")
    assert door.shut == 1
