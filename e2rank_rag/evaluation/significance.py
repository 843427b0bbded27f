"""Whether two methods differ by more than chance, from their values per query.

    by_query = [evaluate_by_query(run, qrels) for run in runs]
    one, other = ({q: values["nDCG@10"] for q, values in of.items()} for of in by_query)
    p = paired_randomization_test(one, other)

The randomisation test makes no assumption about the distribution of the values (Smucker et al.,
CIKM 2007). If several pairs of methods are tested, correct the p-values with `holm_correction`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.stats import permutation_test

# Random signs in memory at a time: about 100 MB for any number of queries.
_SIGNS_AT_ONCE = 2_000_000


def paired_randomization_test(
    a: Mapping[str, float],
    b: Mapping[str, float],
    *,
    rounds: int = 100_000,
    seed: int = 0,
) -> float:
    """The two-sided p-value of Fisher's randomisation test for the mean of a - b being 0.

    If both methods were the same, each query's difference would be equally likely with the other
    sign. p is the share of sign patterns whose mean is at least as far from 0 as the observed mean.
    If the n queries that differ have at most `rounds` patterns (2^n), all are counted; otherwise
    the observed one and `rounds` random ones.

    a, b: query id -> value, such as one measure of `evaluate_by_query`; the same queries in both.

    Raises:
        ValueError: no queries, or different queries; a value that is NaN or infinite; rounds below
            1.
    """
    if not a or a.keys() != b.keys():
        odd = sorted(a.keys() ^ b.keys())
        raise ValueError(
            f"a and b need values for the same queries, got {len(a)} and {len(b)} queries, "
            f"{len(odd)} of them in one only{f', such as {odd[0]!r}' if odd else ''}"
        )
    if rounds < 1:
        raise ValueError(f"rounds must be 1 or more, got {rounds}")
    differences = np.array([a[query] - b[query] for query in a], dtype=np.float64)
    if not np.isfinite(differences).all():
        worst = list(a)[int(np.isfinite(differences).argmin())]
        raise ValueError(f"the values of query {worst!r} are {a[worst]} and {b[worst]}: no number")
    # A query on which both are equal changes no pattern's mean.
    differences = differences[differences != 0]
    if differences.size < 2:
        return 1.0  # one alone is as far from 0 with either sign
    result = permutation_test(
        (differences / np.abs(differences).max(),),
        _distance_from_zero,
        permutation_type="samples",
        vectorized=True,
        n_resamples=rounds,
        batch=max(1, _SIGNS_AT_ONCE // differences.size),
        alternative="greater",
        rng=seed,
    )
    return float(result.pvalue)


def _distance_from_zero(differences: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    means: NDArray[np.float64] = np.abs(differences.mean(axis=axis))
    # Many means are equal (values of P@10 are tenths), but for their last bits.
    return means.round(12)


def holm_correction(p_values: Mapping[str, float]) -> dict[str, float]:
    """p-values of several tests, adjusted to be compared with one level for all (Holm 1979).

    The chance that any true null hypothesis is rejected at that level is then at most the level,
    even for dependent tests. The smallest of m values is multiplied by m, the next by m - 1, and so
    on; no result is smaller than the one before it, or above 1. Keys keep their order.

    Raises:
        ValueError: a value that is not between 0 and 1.
    """
    for name, p in p_values.items():
        if not 0.0 <= p <= 1.0:
            raise ValueError(f"the p-value of {name!r} must be between 0 and 1, got {p}")
    # scipy has no such correction, and statsmodels is a large package for these lines.
    adjusted: dict[str, float] = {}
    floor = 0.0
    for place, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        floor = max(floor, min(1.0, (len(p_values) - place) * p_values[name]))
        adjusted[name] = floor
    return {name: adjusted[name] for name in p_values}
