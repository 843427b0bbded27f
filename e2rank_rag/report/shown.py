"""An encoder that notes what listwise prompts held, and may show their documents in another order.

encoder = PromptEncoder(encoder, reordered=lambda texts: texts[::-1])
ListwiseReranker(encoder).rerank(query, candidates)
(prompt,) = encoder.prompts
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Unpack

from e2rank_rag.evidence import Evidence
from e2rank_rag.feedback import Feedback
from e2rank_rag.types import (
    Cut,
    Embeddings,
    ListwiseEncoding,
    ListwiseOptions,
    PromptUsage,
    T,
    TextEncoder,
)

Reordered = Callable[[Sequence[str]], Sequence[str]]
"""The same texts in another order."""


class Prompt(NamedTuple):
    """The documents of one prompt, in the order in which it showed them."""

    texts: Sequence[str]
    usage: PromptUsage


class PromptEncoder:
    """An open encoder whose prompts are noted, a `TextEncoder`.

    depth: documents that a prompt shows. reordered: of these documents; None keeps their order.
    prompts: those of all calls since it was made, in the order of their queries.
    """

    def __init__(
        self, inner: TextEncoder, depth: int, *, reordered: Reordered | None = None
    ) -> None:
        self.prompts: list[Prompt] = []
        self._inner = inner
        self._depth = depth
        self._reordered = reordered

    @property
    def name(self) -> str:
        """The name of the model."""
        return str(getattr(self._inner, "name", type(self._inner).__name__))

    @property
    def dim(self) -> int:
        """See `TextEncoder.dim`."""
        return self._inner.dim

    @property
    def fingerprint(self) -> str:
        """See `TextEncoder.fingerprint`."""
        return self._inner.fingerprint

    @property
    def feedback(self) -> Feedback | None:
        """See `TextEncoder.feedback`."""
        return self._inner.feedback

    @property
    def evidence(self) -> Evidence | None:
        """See `TextEncoder.evidence`."""
        return self._inner.evidence

    def encode_queries(self, queries: Sequence[str]) -> Embeddings:
        """See `TextEncoder.encode_queries`."""
        return self._inner.encode_queries(queries)

    def encode_documents(
        self, documents: Sequence[str], *, on_cut: Callable[[Cut], None] | None = None
    ) -> Embeddings:
        """See `TextEncoder.encode_documents`."""
        return self._inner.encode_documents(documents, on_cut=on_cut)

    def encode_listwise(
        self,
        queries: Sequence[str],
        candidates: Sequence[Sequence[str]],
        **options: Unpack[ListwiseOptions],
    ) -> ListwiseEncoding:
        """One vector per query, of a prompt with its first `depth` candidates, reordered."""
        shown = [list(texts[: self._depth]) for texts in candidates]
        if self._reordered is not None:
            shown = [list(self._reordered(texts)) for texts in shown]
        options["depth"] = self._depth
        encoding = self._inner.encode_listwise(queries, shown, **options)
        # Without usage no prompt was made: the whole weight is on the query.
        for texts, usage in zip(shown, encoding.usage, strict=False):
            self.prompts.append(Prompt(texts[: usage.documents], usage))
        return encoding

    async def run_async(self, call: Callable[[], T]) -> T:
        """See `TextEncoder.run_async`."""
        return await self._inner.run_async(call)

    def close(self) -> None:
        """Close the encoder."""
        self._inner.close()
