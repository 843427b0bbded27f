"""Vectors of texts. Each text is encoded once; with a vector folder, once for all training runs."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import numpy as np

from e2rank_rag.distributed import process
from e2rank_rag.types import Embeddings


class TextVectors:
    """Vectors of texts, float32 [n, dim], and the row of each text.

    cache: a file that keeps the vectors between training runs, by the hash of the text; one file
        per `Encoder.fingerprint`. Of several processes the first one writes it. None: no file.
    """

    def __init__(self, dim: int, *, cache: Path | None = None) -> None:
        self.rows: dict[str, int] = {}
        self.values: Embeddings = np.empty((0, dim), dtype=np.float32)
        self.cache = cache
        self._kept: dict[bytes, Embeddings] = {}
        if cache is not None and cache.is_file():
            with np.load(cache, allow_pickle=False) as file:
                keys, values = file["keys"], file["values"]
            self._kept = dict(zip((key.tobytes() for key in keys), values, strict=True))

    def encode(self, texts: Sequence[str], encode: Callable[[Sequence[str]], Embeddings]) -> None:
        """Encode the texts that have no vector yet, each once."""
        fresh = [text for text in dict.fromkeys(texts) if text not in self.rows]
        if not fresh:
            return
        unknown = [text for text in fresh if _key(text) not in self._kept]
        if unknown:
            encoded = encode(unknown)
            self._kept.update(zip(map(_key, unknown), encoded, strict=True))
            self._write()
        values = np.stack([self._kept[_key(text)] for text in fresh])
        self.values = np.concatenate([self.values, values])
        self.rows.update(zip(fresh, range(len(self.rows), len(self.values)), strict=True))

    def of(self, texts: Sequence[str]) -> Embeddings:
        """The vectors of texts that were encoded, float32 [n, dim]; KeyError for another text."""
        return self.values[[self.rows[text] for text in texts]]

    def _write(self) -> None:
        if self.cache is None or process() != 0:
            return
        self.cache.parent.mkdir(parents=True, exist_ok=True)
        keys = np.stack([np.frombuffer(key, dtype=np.uint8) for key in self._kept])
        # Under a name of its own: another training run may be writing the same file.
        partial = self.cache.with_suffix(f".{uuid4().hex}.partial")
        with partial.open("wb") as file:
            np.savez(file, keys=keys, values=np.stack(list(self._kept.values())))
        os.replace(partial, self.cache)


@dataclass(frozen=True)
class FrozenVectors:
    """Vectors that training leaves as they are.

    documents: of all documents to train on. queries: of the queries, by their task.
    """

    documents: TextVectors
    queries: Mapping[str | None, TextVectors]


def _key(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()
