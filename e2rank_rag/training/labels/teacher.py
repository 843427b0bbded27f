"""The protocol of a teacher, and its answer for one list."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


class TeacherError(RuntimeError):
    """The teacher fails for every list: unreachable, or it refuses the key, or useless answers."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """A teacher's order of one list, or the reason why there is none.

    ranking: permutation of 1 to n, best first; empty if there is a `problem`.
    problem: a few words, the same for problems of one kind, so that they can be counted.
    said: the beginning of an answer that could not be used.
    cut: how many documents the teacher did not see whole.
    prompt_tokens, completion_tokens: of all answers, including those that could not be used.
    unmetered: number of answers without token counts.
    """

    ranking: tuple[int, ...] = ()
    problem: str = ""
    said: str = ""
    cut: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    unmetered: int = 0


class Teacher(Protocol):
    """Orders the documents of a query."""

    @property
    def record(self) -> Mapping[str, Any]:
        """JSON values that every line holds: the model, its terms and settings."""
        ...

    @property
    def limit(self) -> str:
        """How much of a document the teacher reads, such as "300 words"."""
        ...

    async def order(self, query: str, documents: Sequence[str]) -> Judgement:
        """The teacher's order of one list; TeacherError if other lists would fail too."""
        ...

    async def aclose(self) -> None:
        """Close the teacher's connections or its model."""
        ...
