"""Opens the reranker of a model folder of any system."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from e2rank_rag.locks import opening
from e2rank_rag.models.folders import System, find_model, system_of
from e2rank_rag.rerankers.base import BaseReranker
from e2rank_rag.rerankers.cross_encoder import CrossEncoderReranker
from e2rank_rag.rerankers.listwise import ListwiseReranker
from e2rank_rag.rerankers.residual import ResidualReranker
from e2rank_rag.types import TextEncoder
from e2rank_rag.vectors import StoredVectors, check_policy


@opening()
def load_reranker(
    model: str | Path,
    encoder: TextEncoder | None = None,
    *,
    system: System | None = None,
    stored_vectors: StoredVectors = "check",
    listwise: Mapping[str, Any] | None = None,
    **options: Any,
) -> BaseReranker:
    """The reranker of a model folder or hub id.

    encoder: the open encoder of this E2Rank or ResRank, which the reranker then uses and closes;
        None opens one.
    system: only for a folder that does not say what it holds: "rankt5" for a cross-encoder.
    listwise: for an E2Rank, more arguments of `ListwiseReranker`, such as prompt_depth.
    options: arguments of the system's `from_pretrained`, such as device and dtype.

    `close` it to free the model. Raises CheckpointError if the model cannot be opened; ValueError
    if the folder says another system, for unknown options, and for another model's encoder.
    """
    check_policy(stored_vectors)
    where: dict[str, Any] = {
        key: options[key] for key in ("revision", "local_files_only") if key in options
    }
    found = system_of(model, system, **where)
    refused = [name for name, value in (listwise or {}).items() if value is not None]
    if refused and found != "e2rank":
        raise ValueError(
            f"{', '.join(refused)}: only an E2Rank has this, and {model} is {found!r}: leave it out"
        )
    # The models are imported here, so that a pipeline is built without torch.
    match found:
        case "rankt5":
            from e2rank_rag.models.cross_encoder import CrossEncoder

            if encoder is not None:
                raise ValueError(f"{model} is a cross-encoder without an encoder: leave it out")
            return CrossEncoderReranker(_opened(CrossEncoder, model, options))
        case "resrank":
            from e2rank_rag.models.resrank import ResRank

            options = options if encoder is None else {**options, "encoder": encoder}
            return ResidualReranker(_opened(ResRank, model, options), stored_vectors=stored_vectors)
    if encoder is None:
        from e2rank_rag.models.encoder import Encoder

        encoder = _opened(Encoder, model, options)
    else:
        _check_encoder(encoder, model, options, where)
    return ListwiseReranker(encoder, stored_vectors=stored_vectors, **(listwise or {}))


def option_names(kind: Any) -> list[str]:
    """The names of the options that `from_pretrained` of a class takes."""
    from e2rank_rag.models.runtime import OpenOptions

    own = [*inspect.signature(kind.from_pretrained).parameters][1:-1]  # model first, options last
    return [*own, *OpenOptions.__annotations__]


def _opened(kind: Any, model: str | Path, options: Mapping[str, Any]) -> Any:
    known = option_names(kind)
    unknown = [name for name in options if name not in known]
    if unknown:
        raise ValueError(
            f"{kind.__name__} has no option {', '.join(map(repr, unknown))}; it has "
            f"{', '.join(known)}"
        )
    return kind.from_pretrained(model, **options)


def _check_encoder(
    encoder: TextEncoder, model: str | Path, options: Mapping[str, Any], where: Mapping[str, Any]
) -> None:
    """ValueError if the encoder is another model's, or if options are given beside it."""
    name = getattr(encoder, "name", type(encoder).__name__)
    if str(model) != name and find_model(model, **where).name != name:
        raise ValueError(f"the encoder is {name}, not {model}: leave encoder or open {model}")
    unused = [option for option in options if option not in where]
    if unused:
        raise ValueError(
            f"{', '.join(unused)} cannot be set for an encoder that is open: set it where the "
            "encoder is opened"
        )
