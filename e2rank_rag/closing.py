"""What is opened is closed: by `close`, or at the end of a `with`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Any, NoReturn, Self


class Closable(ABC):
    """A context manager that closes itself."""

    @abstractmethod
    def close(self) -> None:
        """Let go of what this holds. Safe to call twice."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class OpenModel(Closable):
    """A model in memory with its thread, which cannot be copied or pickled; its settings can."""

    name: str

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        kind = type(self).__name__
        raise TypeError(
            f"{kind} {self.name!r} is an open model, which cannot be copied or pickled: open it "
            f"where it is needed with {kind}.from_pretrained(...), which shares what is in memory, "
            "or use the Haystack and LangChain components, which open theirs at first use"
        )
