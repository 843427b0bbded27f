"""Which examples a batch holds; the same again after a stop."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from e2rank_rag.training.lists import SourceBatches


def batches(sizes, *, size=4, balance=1.0, seed=0, together=1):
    return SourceBatches(sizes, size, balance=balance, seed=seed, together=together)


def indices(sampler):
    """The examples of each batch, without the epoch."""
    return [[index for _, index in row] for row in sampler]


def test_a_batch_is_of_one_source_and_a_source_is_used_up_before_it_begins_anew():
    sampler = batches([12, 20])
    rows = indices(sampler)
    assert len(rows) == len(sampler) == 8
    for row in rows:
        assert len(row) == 4
        assert max(row) < 12 or min(row) >= 12
    counts = Counter(place for row in rows for place in row)
    for source in (range(12), range(12, 32)):
        uses = [counts[place] for place in source]
        assert max(uses) - min(uses) <= 1


@pytest.mark.parametrize(("balance", "expected"), [(1.0, 0.9), (0.0, 0.5)])
def test_sources_are_drawn_by_their_size_to_a_power(balance, expected):
    sampler = batches([9000, 1000], balance=balance)
    share = np.mean([row[0] < 9000 for row in indices(sampler)])
    assert share == pytest.approx(expected, abs=0.04)


def test_another_epoch_has_other_batches_and_the_same_one_the_same():
    sampler = batches([40])
    first = list(sampler)
    assert list(sampler) == first
    sampler.set_epoch(1)
    assert {epoch for row in sampler for epoch, _ in row} == {1}
    assert indices(sampler) != [[index for _, index in row] for row in first]


def test_batches_taken_side_by_side_are_one_batch_of_one_source():
    whole, halves = batches([30, 50], size=8), batches([30, 50], size=4, together=2)
    rows = list(halves)
    assert len(rows) == len(halves) == 20
    pairs = zip(rows[::2], rows[1::2], strict=True)
    assert [first + second for first, second in pairs] == list(whole)


def test_every_process_has_as_many_batches():
    assert len(batches([44], size=4, together=2)) == 10
    assert len(batches([3], size=4, together=2)) == 2
