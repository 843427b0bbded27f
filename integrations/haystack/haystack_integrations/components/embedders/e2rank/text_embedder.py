"""E2RankTextEmbedder: the vector of a query."""

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from haystack import component
from haystack.dataclasses import SparseEmbedding
from haystack.utils import ComponentDevice
from haystack_integrations.common.e2rank.component import E2RankComponent

from e2rank_rag.models.shipped import DEFAULT_MODEL
from e2rank_rag.types import Embeddings
from e2rank_rag.words import Bm25

if TYPE_CHECKING:
    from haystack.components.embedders.types import TextEmbedder


@component
@dataclass(eq=False, repr=False)
class E2RankTextEmbedder(E2RankComponent):
    """Embeds a query, for a retriever over vectors of the same model.

    ```python
    from haystack_integrations.components.embedders.e2rank import E2RankTextEmbedder

    embedding = E2RankTextEmbedder(model="e2rank-minilm").run("who climbed it first?")["embedding"]
    ```

    The model is loaded at the first run, or by `warm_up`.

    :param model: "e2rank-minilm", a model folder or a hub id. The model's own query prompt applies.
    :param bm25: give `sparse_embedding` too, the words of the query, for a QdrantHybridRetriever:
        the settings that E2RankDocumentEmbedder or "Qdrant/bm25" had.
    :param prefix: text before the query, inside that prompt.
    :param suffix: text after the query, inside that prompt.
    :param device: None takes CUDA where there is one, else the CPU, on the machine that runs it.
    :param dtype: None takes bfloat16 on CUDA, float32 on the CPU; "auto" takes bfloat16 on a CPU
        too, if it computes in it.
    :param encoder_kwargs: further arguments of `e2rank_rag.Encoder.from_pretrained`, such as task,
        revision, max_length.
    """

    _: KW_ONLY
    model: str | Path = DEFAULT_MODEL
    bm25: Bm25 | dict[str, Any] | None = None
    prefix: str = ""
    suffix: str = ""
    device: ComponentDevice | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] | None = None
    encoder_kwargs: dict[str, Any] | None = None

    @component.output_types(embedding=list[float], sparse_embedding=SparseEmbedding)
    def run(self, text: str) -> dict[str, Any]:
        """Embed a query.

        :param text: the query.
        :returns: `embedding`, its unit vector; with `bm25` also its `sparse_embedding`.
        :raises TypeError: for anything but a string.
        """
        queries = [self._prepared(text)]
        return self._output(self._open_encoder().encode_queries(queries), text)

    @component.output_types(embedding=list[float], sparse_embedding=SparseEmbedding)
    async def run_async(self, text: str) -> dict[str, Any]:
        """`run` without blocking the event loop."""
        queries = [self._prepared(text)]
        encoder = await self._aopen_encoder()
        return self._output(await encoder.aencode_queries(queries), text)

    def _prepared(self, text: str) -> str:
        if not isinstance(text, str):
            raise TypeError(
                f"E2RankTextEmbedder expects a string as input, got {type(text).__name__}; for "
                "Documents there is E2RankDocumentEmbedder"
            )
        return self.prefix + text + self.suffix

    def _output(self, vectors: Embeddings, text: str) -> dict[str, Any]:
        embedding = {"embedding": vectors[0].tolist()}
        if self.bm25 is None:
            return embedding
        words = Bm25.model_validate(self.bm25).query(text)
        return {**embedding, "sparse_embedding": SparseEmbedding(*words)}


if TYPE_CHECKING:
    _fits: type[TextEmbedder] = E2RankTextEmbedder
