"""Models in MTEB: an encoder, and a whole search with a reranker, as `mteb.evaluate` takes them.

    reranker = load_reranker("e2rank-minilm")
    mteb.evaluate(MtebEncoder(reranker.encoder), mteb.get_task("SciFact"))
    mteb.evaluate(MtebReranker(reranker), mteb.get_task("SciFact"))

MTEB's interface for a cross-encoder gives pairs, in no list. E2Rank and ResRank read the list of a
query, so the reranker has MTEB's interface for a search: it gets each query with the candidates of
the task, or with none, and then retrieves them itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pydantic import BaseModel

from e2rank_rag.documents import compose_text
from e2rank_rag.evaluation.systems import BATCH_QUERIES, own_documents
from e2rank_rag.indexing import index_documents
from e2rank_rag.models.weights import weights_digest
from e2rank_rag.pipeline import SearchPipeline
from e2rank_rag.rerankers import BaseReranker, CrossEncoderReranker
from e2rank_rag.store import QdrantStore
from e2rank_rag.store.opening import MEMORY
from e2rank_rag.types import Document, Hit
from e2rank_rag.words import Bm25

if TYPE_CHECKING:
    from mteb.models import ModelMeta
    from mteb.types import PromptType

    from e2rank_rag.models.encoder import Encoder

SETTINGS = (
    "prompt_depth",
    "query_weight",
    "feedback",
    "evidence",
    "passes",
    "window",
    "feedback_documents",
    "beta",
)
"""What a reranker may be set to; those that are not None are kept beside the results."""


class MtebEncoder:
    """An encoder as MTEB's `EncoderProtocol`. Queries get the query prompt, other texts none.

    encoder: stays open. MTEB's batch size does not count, since batches are made by their tokens;
    nor do its prompts, since the model's recipe has its own.
    mteb_model_meta: MTEB's record of the model, which may be replaced by a fuller one. Its revision
        changes with weights and recipe, so MTEB's cache holds no results of another model.
    """

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self.mteb_model_meta = _meta(encoder.name, encoder, encoder)

    def encode(
        self,
        inputs: Iterable[Mapping[str, Any]],
        *,
        prompt_type: PromptType | None = None,
        **_: Any,
    ) -> np.ndarray:
        """Vectors, float32 [n, dim], of the texts in batches with the key "text"."""
        texts = _texts(inputs)
        if prompt_type is not None and prompt_type.value == "query":
            return self.encoder.encode_queries(texts)
        return self.encoder.encode_documents(texts)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> torch.Tensor:
        """The cosines of vectors [n, dim] and [m, dim]: [n, m]."""
        first, second = torch.as_tensor(embeddings1), torch.as_tensor(embeddings2)
        cosines: torch.Tensor = torch.atleast_2d(first) @ second.T
        return cosines

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> torch.Tensor:
        """The cosine of each row of [n, dim] with the same row of the other: [n]."""
        return (torch.as_tensor(embeddings1) * torch.as_tensor(embeddings2)).sum(dim=-1)


class MtebReranker:
    """A search with a reranker as MTEB's `SearchProtocol`.

    The candidates of a task (a Reranking task, or one after `convert_to_reranking`) are reranked, a
    list for each query. For any other task `retrieve_k` documents are retrieved for each query and
    reranked. Measures beyond that rank count these alone.
    A document with the id and the text of the query is left out before reranking.

    reranker: stays open. encoder: retrieves, and makes the vectors of the index; None: that of the
        reranker. A cross-encoder has none.
    bm25: makes words of the documents, and the search is a hybrid one; None: by vector alone.
    location: of the index, as for `QdrantStore.open`: a server for millions of documents. Each task
        has a collection there, and a second run encodes nothing again.
    mteb_model_meta: as in `MtebEncoder`; what the reranker is set to is in its `experiment_kwargs`.

    Raises ValueError if nothing retrieves, and both classes ImportError without MTEB.
    """

    def __init__(
        self,
        reranker: BaseReranker,
        encoder: Encoder | None = None,
        *,
        retrieve_k: int = 100,
        bm25: Bm25 | None = None,
        location: str | Path = MEMORY,
    ) -> None:
        if retrieve_k < 1:
            raise ValueError(f"retrieve_k must be 1 or more, got {retrieve_k}")
        own: Any = encoder if reranker.vectors is None else encoder or reranker.vectors.encoder
        if own is None:
            raise ValueError(f"{type(reranker).__name__} reads no vectors: give an encoder too")
        self.reranker = reranker
        self.encoder: Encoder = own
        self.retrieve_k = retrieve_k
        self.bm25 = bm25
        self.location = location
        self._pipeline: SearchPipeline | None = None
        model = getattr(reranker, "model", self.encoder)
        self.mteb_model_meta = _meta(model.name, self.encoder, model).model_copy(
            update={
                "experiment_kwargs": self._settings(),
                "model_type": ["cross-encoder" if _reads_pairs(reranker) else "dense"],
            }
        )

    def index(
        self, corpus: Any, *, task_metadata: Any, hf_split: str, hf_subset: str, **_: Any
    ) -> None:
        """Index the documents: rows with id, text and, if they have one, title."""
        self.close()
        name = f"mteb-{task_metadata.name}-{hf_subset}-{hf_split}"
        store = QdrantStore.open(self.location, name, bm25=self.bm25)
        index_documents(map(_document, corpus), self.encoder, store)
        self._pipeline = SearchPipeline(self.encoder, store, self.reranker)

    def search(
        self,
        queries: Any,
        *,
        task_metadata: Any,
        top_k: int,
        top_ranked: Mapping[str, Sequence[str]] | None = None,
        **_: Any,
    ) -> dict[str, dict[str, float]]:
        """Query id -> document id -> score, falling strictly from rank to rank.

        top_ranked: the candidates of each query; a query without any has no ranking.
        """
        pipeline = self._pipeline
        if pipeline is None:
            raise ValueError("nothing is indexed yet: call index before search")
        from mteb._create_dataloaders import create_dataloader
        from mteb.types import PromptType

        ids = [str(id) for id in queries["id"]]
        loader = create_dataloader(
            queries, task_metadata=task_metadata, prompt_type=PromptType.query, batch_size=32
        )
        texts = dict(zip(ids, _texts(loader), strict=True))
        own = own_documents(pipeline.store, texts, {})
        found: dict[str, dict[str, float]] = {}
        for start in range(0, len(ids), BATCH_QUERIES):
            batch = ids[start : start + BATCH_QUERIES]
            rankings = pipeline.search_batch(
                [texts[id] for id in batch],
                top_k=self.retrieve_k,
                retrieve_k=self.retrieve_k,
                candidates=None if top_ranked is None else [top_ranked.get(i, []) for i in batch],
                exclude=[{id} & own for id in batch],
                hybrid=self.bm25 is not None,
            )
            scores = [falling_scores(hits[:top_k]) for hits in rankings]
            found.update(zip(batch, scores, strict=True))
        return found

    def close(self) -> None:
        """Close the index, not the models."""
        if self._pipeline is not None:
            self._pipeline.store.close()
            self._pipeline = None

    def _settings(self) -> dict[str, Any]:
        own = {name: getattr(self.reranker, name, None) for name in SETTINGS}
        return {
            "reranker": type(self.reranker).__name__,
            "retrieve_k": self.retrieve_k,
            "hybrid": self.bm25 is not None,
            **{name: _plain(value) for name, value in own.items() if value is not None},
        }


def _texts(batches: Iterable[Mapping[str, Any]]) -> list[str]:
    return [text for batch in batches for text in batch["text"]]


def _document(row: Mapping[str, Any]) -> Document:
    title = row.get("title") or ""
    text = compose_text(title, row["text"])
    return Document(str(row["id"]), text, {"title": title} if title else {})


def falling_scores(hits: Sequence[Hit]) -> dict[str, float]:
    """Scores that differ in 32 bits: MTEB orders equal ones by their ids."""
    scores, ceiling = {}, np.float32(inf)
    for hit in hits:
        ceiling = min(np.float32(hit.score), np.nextafter(ceiling, np.float32(-inf)))
        scores[hit.document.id] = float(ceiling)
    return scores


def _reads_pairs(reranker: BaseReranker) -> bool:
    return isinstance(reranker, CrossEncoderReranker)


def _plain(value: Any) -> Any:
    return value.model_dump() if isinstance(value, BaseModel) else value


def _meta(name: str, encoder: Encoder, model: Any) -> ModelMeta:
    """MTEB's record of a model. What is not known here is None, as MTEB wants it."""
    try:
        from mteb.models import ModelMeta
    except ModuleNotFoundError as error:
        raise ImportError('this needs MTEB: pip install "e2rank-rag[mteb]"') from error

    folder = Path(name).expanduser()
    known = name if "/" in name else f"e2rank-rag/{name}"
    return ModelMeta(
        loader=None,
        # The path of a folder says nothing elsewhere, and more than it should.
        name=f"local/{folder.resolve().name}" if folder.is_dir() else known,
        revision=_revision(encoder, model),
        release_date=None,
        languages=None,
        n_parameters=sum(p.numel() for p in encoder.loaded.transformer.parameters()),
        memory_usage_mb=None,
        max_tokens=encoder.recipe.document_tokens,
        embed_dim=encoder.dim,
        license=None,
        open_weights=None,
        public_training_code=None,
        public_training_data=None,
        framework=["PyTorch", "Transformers"],
        similarity_fn_name="cosine",
        use_instructions=encoder.recipe.prompts.query_text("") != "",
        training_datasets=None,
    )


def _revision(encoder: Encoder, model: Any) -> str:
    """A hash of the weights, the adapter's too, and of the recipes."""
    lists = getattr(model, "lists", None)  # a ResRank's reranker
    parts = [
        encoder.digest,
        weights_digest(encoder.loaded.listwise),
        encoder.recipe.model_dump_json(),
        model.digest if lists is None else weights_digest(lists.backbone),
        model.recipe.model_dump_json(),
    ]
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:40]
