"""Objects that are closed by `close`, or at the end of a `with` block."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NoReturn, Self


class Closable(ABC):
    """A context manager that closes itself."""

    @abstractmethod
    def close(self) -> None:
        """Free what this object holds. Safe to call twice."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class OpenModel(Closable):
    """A model in memory with its thread. It cannot be copied or pickled; its settings can be."""

    name: str

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        kind = type(self).__name__
        raise TypeError(
            f"{kind} {self.name!r} is an open model, which cannot be copied or pickled: open it "
            f"where it is needed with {kind}.from_pretrained(...), which shares the weights in "
            "memory, or use the Haystack and LangChain components, which open it at first use"
        )
