"""A cross-encoder as a teacher: it scores each pair of query and document in this process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from e2rank_rag.models.config import read_config
from e2rank_rag.models.cross_encoder import CrossEncoder
from e2rank_rag.models.cross_encoder_folder import longest_pair
from e2rank_rag.models.folders import read_system, resolve_folder
from e2rank_rag.models.tokenizer_files import load_tokenizer
from e2rank_rag.training.labels.teacher import Judgement, TeacherError


class CrossEncoderTeacher:
    """`async with aclosing(CrossEncoderTeacher("cross-encoder/ms-marco-MiniLM-L12-v2")) as t: ...`

    For models that `CrossEncoder` opens: they read the pair without a prompt and give one score. A
    model that was trained with a prompt, such as Qwen3-Reranker, would order badly. Scores are
    computed in float32, because rounded scores tie.

    terms: what the model's scores may be used for, in words or as a URL; kept in the data.
    max_tokens: length of a pair; longer documents are cut. Default: the model's limit.

    Raises CheckpointError if there is no such model, or it is not a cross-encoder with one score.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        terms: str | None = None,
        device: str | None = None,
        max_tokens: int | None = None,
    ) -> None:
        folder = resolve_folder(model)
        if read_system(folder) is None:
            longest = longest_pair(read_config(folder), load_tokenizer(folder))
            max_tokens = longest if max_tokens is None else min(max_tokens, longest)
        self._ranker = CrossEncoder.from_pretrained(
            model, max_length=max_tokens, dtype="float32", device=device
        )
        self.max_tokens = self._ranker.recipe.max_tokens
        self.limit = f"{self.max_tokens:,} tokens with their query"
        self.record: dict[str, Any] = {"model": self._ranker.name, "max_tokens": self.max_tokens}
        if terms:
            self.record["terms"] = terms

    async def order(self, query: str, documents: Sequence[str]) -> Judgement:
        """The documents by score, highest first; documents with equal scores keep their order."""
        return await self._ranker.run_async(lambda: self._order(query, documents))

    async def aclose(self) -> None:
        """Release the model."""
        self._ranker.close()

    def _order(self, query: str, documents: Sequence[str]) -> Judgement:
        try:
            room = self._ranker.room(query)
        except ValueError:
            return Judgement(problem="query has no token", said=query[:100])
        if room < 1:
            return Judgement(problem="query leaves no room for documents", said=query[:100])
        try:
            (scores,), (usage,) = self._ranker.score([query], [documents], least=1)
        except FloatingPointError as error:
            raise TeacherError(
                f"{self.record['model']} gave a score that is no finite number"
            ) from error
        ranking = sorted(range(len(documents)), key=lambda place: -scores[place])
        return Judgement(ranking=tuple(place + 1 for place in ranking), cut=usage.documents_cut)
