"""Values that stored indices and saved models rely on, held to a file.

Elsewhere expected values are worked out in the test. These cannot be: an index keeps vectors and a
fingerprint for years, a saved model keeps an `e2rank.json`, and a run that goes on needs the draws
of the run that was stopped. `pins/promises.json` holds what the code gave when the promise was
made; `python -m tests.pins.promises` writes it again.
"""

from __future__ import annotations

import json

import pytest

from tests.pins import promises

TOLERANCE = 1e-5
PINNED = json.loads(promises.FILE.read_text(encoding="utf-8"))


def assert_same(found, pinned, where=""):
    """Equal, but for floats, which may differ by the tolerance."""
    if isinstance(pinned, dict):
        assert found.keys() == pinned.keys(), where
        for key in pinned:
            assert_same(found[key], pinned[key], f"{where}/{key}")
    elif isinstance(pinned, list):
        assert len(found) == len(pinned), where
        for place, (one, other) in enumerate(zip(found, pinned, strict=True)):
            assert_same(one, other, f"{where}/{place}")
    elif isinstance(pinned, float):
        assert found == pytest.approx(pinned, abs=TOLERANCE), where
    else:
        assert found == pinned, where


@pytest.mark.parametrize("part", promises.PARTS, ids=lambda part: part.__name__)
def test_a_promise_is_kept(part):
    found = json.loads(json.dumps(part()))
    assert_same(found, PINNED[part.__name__])
