"""A cross-encoder as a teacher: a score for each (query, document) pair, in this process."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from e2rank_rag.errors import CheckpointError
from e2rank_rag.models.checkpoint import (
    load_tokenizer,
    positions,
    quiet_transformers,
    resolve_folder,
)
from e2rank_rag.models.cpu import use_onednn
from e2rank_rag.models.worker import Worker
from e2rank_rag.training.labeling import Judgement, TeacherError

BATCH_PAIRS = 32


class CrossEncoderTeacher:
    """`async with aclosing(CrossEncoderTeacher("cross-encoder/ms-marco-MiniLM-L12-v2")) as t: ...`

    For models that read the bare pair and give one score; one that was trained with a prompt around
    it, such as Qwen3-Reranker, would order badly. Computes in float32, since rounded scores tie.

    terms: what the model's scores may be used for, in words or as a URL; goes into the data.
    max_tokens: of a pair; documents are cut there. By default what the model takes.

    Raises CheckpointError where there is no such model, or it is no cross-encoder of one score.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        terms: str | None = None,
        device: str | None = None,
        max_tokens: int | None = None,
    ) -> None:
        self._device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        folder = resolve_folder(model)
        self._tokenizer = load_tokenizer(folder)
        loaded = _load(folder)
        if self._device.type == "cpu":
            use_onednn(loaded)
        self._model: Any = loaded.to(device=self._device)  # type: ignore[call-arg]
        longest = min(positions(loaded.config), self._tokenizer.model_max_length)
        self.max_tokens = longest if max_tokens is None else min(max_tokens, longest)
        self.limit = f"{self.max_tokens:,} tokens with their query"
        self.record: dict[str, Any] = {"model": str(model), "max_tokens": self.max_tokens}
        if terms:
            self.record["terms"] = terms
        # Without these a BERT reads the document as part of the query, and says nothing of it.
        self._needs_segments = getattr(loaded.config, "type_vocab_size", 0) > 1
        self._worker = Worker("cross-encoder")

    async def order(self, query: str, documents: Sequence[str]) -> Judgement:
        """The documents by falling score; equal scores keep their order."""
        return await self._worker.run_async(lambda: self._order(query, documents))

    async def aclose(self) -> None:
        """Let go of the model."""
        self._worker.close()

    def _order(self, query: str, documents: Sequence[str]) -> Judgement:
        asked = self._tokenizer(query, add_special_tokens=False, split_special_tokens=True)
        around = self._tokenizer.num_special_tokens_to_add(pair=True)
        if len(asked["input_ids"]) + around >= self.max_tokens:
            return Judgement(problem="query leaves no room for documents", said=query[:100])
        scores = [0.0] * len(documents)
        cut = 0
        by_length = sorted(range(len(documents)), key=lambda place: len(documents[place]))
        for start in range(0, len(by_length), BATCH_PAIRS):
            places = by_length[start : start + BATCH_PAIRS]
            batch_scores, batch_cut = self._scores(query, [documents[place] for place in places])
            cut += batch_cut
            for place, score in zip(places, batch_scores, strict=True):
                scores[place] = score
        if not all(map(math.isfinite, scores)):
            raise TeacherError(f"{self.record['model']} gave a score that is no finite number")
        ranking = sorted(range(len(documents)), key=lambda place: -scores[place])
        return Judgement(ranking=tuple(place + 1 for place in ranking), cut=cut)

    def _scores(self, query: str, documents: Sequence[str]) -> tuple[list[float], int]:
        tokens = self._tokenizer(
            [query] * len(documents),
            list(documents),
            truncation="only_second",
            max_length=self.max_tokens,
            padding=True,
            return_tensors="pt",
            return_token_type_ids=self._needs_segments,
            split_special_tokens=True,  # a document that says [SEP] stays text
        )
        with torch.inference_mode():
            logits = self._model(**tokens.to(self._device)).logits
        return logits[:, 0].tolist(), sum(bool(each.overflowing) for each in tokens.encodings)


def _load(folder: Path) -> PreTrainedModel:
    try:
        with quiet_transformers():
            model, report = AutoModelForSequenceClassification.from_pretrained(
                folder,
                dtype=torch.float32,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
            )
    except Exception as error:
        raise CheckpointError(f"the cross-encoder in {folder} cannot be read: {error}") from error
    if report["missing_keys"]:
        # Such as the whole head of an embedding model, which would be filled with random numbers.
        raise CheckpointError(
            f"{folder} is no cross-encoder: it lacks {sorted(report['missing_keys'])[0]} and "
            f"{len(report['missing_keys']) - 1} more tensors of {type(model).__name__}"
        )
    if model.config.num_labels != 1:
        raise CheckpointError(
            f"{folder} gives {model.config.num_labels} numbers per pair; a cross-encoder with one "
            "score is needed"
        )
    loaded: PreTrainedModel = model.eval()
    return loaded
