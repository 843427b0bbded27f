"""How methods differ query by query: wins, losses, ties, and whether it is more than chance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from e2rank_rag.evaluation.significance import holm_correction, paired_randomization_test

LEVEL = 0.05
"""A difference is marked as significant where `p_holm` is below this."""

Values = Mapping[str, float]
"""query id -> value of one measure."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One method against another on the same queries, in one measure.

    wins, losses, ties: queries whose value is higher, lower, and equal to the other method's.
    p: two-sided, from `paired_randomization_test` with its own seed, so it is always the same.
    p_holm: p with Holm's correction over all differences that were computed together.
    """

    wins: int
    losses: int
    ties: int
    p: float
    p_holm: float

    @property
    def significant(self) -> bool:
        """Whether `p_holm` is below `LEVEL`."""
        return self.p_holm < LEVEL


def differences(pairs: Mapping[str, tuple[Values, Values]]) -> dict[str, Difference]:
    """One `Difference` for each pair of a method's values and the other's, in their order.

    The names of the pairs are those of methods on one dataset, or of datasets for one method.

    Raises:
        ValueError: a pair without queries or with different ones; a value that is not finite.
    """
    p = {name: paired_randomization_test(one, other) for name, (one, other) in pairs.items()}
    adjusted = holm_correction(p)
    found = {}
    for name, (one, other) in pairs.items():
        wins = sum(one[query] > other[query] for query in one)
        losses = sum(one[query] < other[query] for query in one)
        ties = len(one) - wins - losses
        found[name] = Difference(wins, losses, ties, p[name], adjusted[name])
    return found


@dataclass(frozen=True, slots=True)
class Differences:
    """How several methods differ from one of them.

    against: the method that the others are compared with.
    by_method: method -> measure -> difference, without `against`; empty if there is no other one.
    """

    against: str
    by_method: Mapping[str, Mapping[str, Difference]]

    @classmethod
    def of(
        cls, by_query: Mapping[str, Mapping[str, Mapping[str, float]]], against: str
    ) -> Differences:
        """Compare methods; Holm's correction is over the methods, for each measure alone.

        by_query: method -> query id -> measure -> value.

        Raises:
            ValueError: `against` is none of the methods; the methods' queries differ.
        """
        if against not in by_query:
            raise ValueError(f"against must be one of {list(by_query)}, got {against!r}")
        others = [method for method in by_query if method != against]
        found: dict[str, dict[str, Difference]] = {method: {} for method in others}
        for measure in next(iter(by_query[against].values()), {}):
            values = {
                method: {query: each[measure] for query, each in queries.items()}
                for method, queries in by_query.items()
            }
            pairs = {method: (values[method], values[against]) for method in others}
            for method, difference in differences(pairs).items():
                found[method][measure] = difference
        return cls(against, found)
