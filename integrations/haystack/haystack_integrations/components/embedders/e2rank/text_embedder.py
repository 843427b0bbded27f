"""E2RankTextEmbedder: the vector of a query."""

# First, since it says which extra is missing where Haystack is.
from haystack_integrations.components.rankers.e2rank import _backend  # isort: skip

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from haystack import component, default_from_dict
from haystack.utils import ComponentDevice

from e2rank_rag.models.folders import model_name
from e2rank_rag.models.shipped import DEFAULT_MODEL

if TYPE_CHECKING:
    from haystack.components.embedders.types import TextEmbedder


@component
class E2RankTextEmbedder(_backend.Configured):
    """Embeds a query, for a retriever over vectors of the same model.

    ```python
    from haystack_integrations.components.embedders.e2rank import E2RankTextEmbedder

    embedding = E2RankTextEmbedder(model="e2rank-minilm").run("who climbed it first?")["embedding"]
    ```
    """

    def __init__(
        self,
        *,
        model: str | Path = DEFAULT_MODEL,
        prefix: str = "",
        suffix: str = "",
        device: ComponentDevice | None = None,
        dtype: Literal["float32", "bfloat16", "float16"] | None = None,
        encoder_kwargs: dict[str, Any] | None = None,
    ) -> None:
        """Nothing is loaded before the first run, or `warm_up`.

        model: "e2rank-minilm", a model folder or a hub id; its own query prompt is applied.
        prefix, suffix: put around the text, inside that prompt.
        device: None takes CUDA where there is one, else the CPU, on the machine that runs it.
        encoder_kwargs: further arguments of `e2rank_rag.Encoder.from_pretrained`, such as task,
            revision, max_length.
        """
        self.model = model_name(model)
        self.prefix = prefix
        self.suffix = suffix
        self.device = device
        self.dtype = dtype
        self.encoder_kwargs = encoder_kwargs
        self._encoder = _backend.LazyEncoder(
            self.model, device=device, dtype=dtype, options=encoder_kwargs
        )

    def to_dict(self) -> dict[str, Any]:
        """For YAML; the device stays open where none was given."""
        return _backend.to_dict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "E2RankTextEmbedder":
        """From `to_dict`."""
        return default_from_dict(cls, data)

    def warm_up(self) -> None:
        """Load the model; does nothing when it is there."""
        self._encoder.open()

    async def warm_up_async(self) -> None:
        """`warm_up` without blocking the event loop."""
        await self._encoder.aopen()

    def close(self) -> None:
        """Free the model unless another component uses it; the next run opens it again."""
        self._encoder.close()

    async def close_async(self) -> None:
        """`close` without blocking the event loop."""
        await asyncio.to_thread(self.close)

    @component.output_types(embedding=list[float])
    def run(self, text: str) -> dict[str, list[float]]:
        """The unit vector of a query. TypeError for anything but a string."""
        return self._output(self._encoder.encode_queries([self._prepared(text)]))

    @component.output_types(embedding=list[float])
    async def run_async(self, text: str) -> dict[str, list[float]]:
        """`run` without blocking the event loop."""
        encoder = await self._encoder.aopen()
        return self._output(await encoder.aencode_queries([self._prepared(text)]))

    def _prepared(self, text: str) -> str:
        if not isinstance(text, str):
            raise TypeError(
                f"E2RankTextEmbedder expects a string as input, got {type(text).__name__}; for "
                "Documents there is E2RankDocumentEmbedder"
            )
        return self.prefix + text + self.suffix

    def _output(self, vectors: Any) -> dict[str, list[float]]:
        return {"embedding": vectors[0].tolist()}


if TYPE_CHECKING:
    _fits: type[TextEmbedder] = E2RankTextEmbedder
