"""Compares a released E2Rank model with its published cosines, by the example of its README.

The release publishes the scores of two queries with two documents, once for plain queries and once
for the README's listwise template, in which documents end with the end token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from e2rank_rag.prompts import E2RANK, E2RANK_README

if TYPE_CHECKING:
    from e2rank_rag.models.encoder import Encoder

QUERIES = ("What is the capital of China?", "Explain gravity")
DOCUMENTS = (
    "The capital of China is Beijing.",
    "Gravity is a force that attracts two bodies towards each other. It gives weight to physical "
    "objects and is responsible for the movement of planets around the sun.",
)

PUBLISHED = {
    "plain, vLLM": ((0.5958, 0.0301), (0.0603, 0.5596)),
    "plain, transformers": ((0.5951, 0.0304), (0.0620, 0.5627)),
    "listwise, vLLM": ((0.8517, 0.2404), (0.3310, 0.7905)),
}
"""The published cosines of Alibaba-NLP/E2Rank-0.6B: rows are queries, columns documents."""

TOLERANCE = 0.01
"""Two sets of plain cosines were published, which differ by up to 0.0031; bfloat16 adds more."""


@dataclass(frozen=True, slots=True)
class Verification:
    """Our cosines, queries x documents, and how far they are from the published ones."""

    plain: np.ndarray
    listwise: np.ndarray

    @property
    def largest_difference(self) -> float:
        """The largest difference to the eight scores that were published for vLLM."""
        plain = np.abs(self.plain - np.array(PUBLISHED["plain, vLLM"]))
        listwise = np.abs(self.listwise - np.array(PUBLISHED["listwise, vLLM"]))
        return float(max(plain.max(), listwise.max()))

    @property
    def agrees(self) -> bool:
        """Whether no score differs by more than `TOLERANCE`."""
        return self.largest_difference <= TOLERANCE


def verify(encoder: Encoder) -> Verification:
    """Encode the README's example with the README's template.

    Raises ValueError for an encoder that does not use E2Rank's prompts.
    """
    recipe = encoder.recipe
    if recipe.prompts.query != E2RANK.query or recipe.pooling != "last":
        raise ValueError(
            f"{encoder.name} does not encode like the released E2Rank models (last token, "
            "'Instruct: ... Query:'), so there are no published cosines to compare it with"
        )
    documents = encoder.encode_documents(DOCUMENTS)
    prompts = [
        E2RANK_README.before
        + E2RANK_README.user_turn(E2RANK.task, query, DOCUMENTS)
        + E2RANK_README.after
        for query in QUERIES
    ]
    return Verification(
        plain=encoder.encode_queries(QUERIES) @ documents.T,
        listwise=encoder.encode_verbatim(prompts) @ documents.T,
    )
