"""The records and protocols that all modules share.

A *ranking* is a plain `list[Hit]`, best first. Embeddings are float32 numpy arrays of unit length.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import (
    TYPE_CHECKING,
    Any,
    Literal,
    NamedTuple,
    Protocol,
    Self,
    TypedDict,
    TypeVar,
    Unpack,
)

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from e2rank_rag.evidence import Evidence
    from e2rank_rag.explanation import Explanation
    from e2rank_rag.feedback import Feedback

Embeddings = NDArray[np.float32]
"""float32 [n, dim] (a batch) or [dim] (one), unit length."""

Filter = Mapping[str, Any]
"""Conditions on meta fields, all of which must hold: `{"year": 2024}` (equal),
`{"tag": ["a", "b"]}` (any of), `{"year": {"gte": 2000, "lt": 2010}}` (range; dates as ISO
strings)."""

Fusion = Literal["rrf", "dbsf"]
"""How a hybrid search makes one ranking of two. rrf: by ranks (reciprocal rank fusion). dbsf: by
scores, scaled by their mean and deviation (distribution-based score fusion)."""

Hybrid = bool | Fusion
"""Whether to search by words beside the vector, and with which fusion; True is rrf."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Document:
    """A text with an id that is unique in its index; `meta` holds JSON values."""

    id: str
    text: str
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Hit:
    """A document with its score for one query, higher is better, comparable within that query only.

    score: after a search the cosine (of a hybrid search, the fused score). After a reranking the
        cosine with the reranking vector, plus what words add where the reranker has `Evidence`: in
        units of the cosines' deviation within the list, so it may be above 1 or below -1. A
        cross-encoder's score is no cosine.
    embedding: float32 [dim], unit length; None if it was not read or computed yet.
    source: the name of the store that the embedding was read from; "" for any other embedding.
    fingerprint: of the encoder that made the embedding, if the store's record or a probe says so.
        Embeddings without the reranking encoder's fingerprint are probed (`e2rank_rag.vectors`).
    retrieval_score: the score before the first reranking, of whatever kind it was; NaN where the
        candidate had none, None when it was not reranked.
    explanation: what the score is made of, where the reranking was asked to `explain`.
    """

    document: Document
    score: float
    embedding: Embeddings | None = field(default=None, compare=False, repr=False)
    source: str = field(default="", compare=False, repr=False)
    retrieval_score: float | None = field(default=None, compare=False)
    fingerprint: str | None = field(default=None, compare=False, repr=False)
    explanation: Explanation | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class RankingExample:
    """One query to train on. `labels[i]` grades `documents[i]`, higher is better.

    positive: index of a document that is known to be relevant, where the labels are a teacher's.
    judged: the judgements, where the labels are a teacher's order (n to 1): one label for each
        document, () if there are none. None: the labels are the judgements.
    source: the dataset that the query is from, where several datasets share a file.
    copies: other texts under which the query is also a document of its dataset, such as the query
        with a title before it.
    """

    query: str
    documents: tuple[str, ...]
    labels: tuple[float, ...]
    ids: tuple[str, ...] = ()
    task: str | None = None
    positive: int | None = None
    judged: tuple[float, ...] | None = None
    source: str | None = None
    copies: tuple[str, ...] = ()


class StoredDocument(NamedTuple):
    """What a store holds under one id; `embedding` is None unless it was asked for.

    fingerprint: of the encoder that made the embedding; None without a record, or an embedding.
    """

    document: Document
    embedding: Embeddings | None = None
    fingerprint: str | None = None


@dataclass(frozen=True, slots=True)
class PromptUsage:
    """How much of a candidate list one listwise prompt held.

    documents: candidates in the prompt, from the first on.
    documents_cut: how many of those were shortened to their share of the token budget.
    tokens: length of the whole prompt, special tokens included.
    query_cut: whether the query itself was shortened.
    """

    documents: int
    documents_cut: int
    tokens: int
    query_cut: bool = False


class Cut(NamedTuple):
    """In one call, `texts` of `of` texts were longer than `limit` tokens and were cut there."""

    texts: int
    of: int
    limit: int


class _Encoding(NamedTuple):
    embeddings: Embeddings
    usage: tuple[PromptUsage, ...]


class ListwiseEncoding(_Encoding):
    """Listwise vectors, float32 [n, dim] of unit length, and what each prompt held: a pair.

    prompts: the vectors before the blend with the queries', [n, dim]; None: no prompt was made, or
        nothing is known of a blend. query_weight: `a` of the blend.
    """

    prompts: Embeddings | None
    query_weight: float

    def __new__(
        cls,
        embeddings: Embeddings,
        usage: tuple[PromptUsage, ...],
        prompts: Embeddings | None = None,
        query_weight: float = 0.0,
    ) -> Self:
        encoding = super().__new__(cls, embeddings, usage)
        encoding.prompts = prompts
        encoding.query_weight = query_weight
        return encoding


class ListwiseOptions(TypedDict, total=False):
    """How a query and its candidates become one vector; None: as the model's recipe says.

    depth: how many candidates the prompt shows. query_weight: of the plain query's vector.
    query_vectors: [n, dim], the vectors of these queries from `encode_queries`.
    """

    depth: int | None
    query_weight: float | None
    query_vectors: Embeddings | None


class PairScores(NamedTuple):
    """Scores of pairs: float32 [k] for the k documents of each query, and the prompts' sums."""

    scores: list[NDArray[np.float32]]
    usage: tuple[PromptUsage, ...]


class PairRanker(Protocol):
    """Scores each (query, document) pair; scores are comparable within one query."""

    def score(self, queries: Sequence[str], documents: Sequence[Sequence[str]]) -> PairScores:
        """One score per pair, higher is better; `documents` has a list for each query."""
        ...

    async def run_async(self, call: Callable[[], T]) -> T:
        """Run a call that uses this ranker without blocking the event loop."""
        ...

    def close(self) -> None:
        """Free the model; a second call does nothing."""
        ...


class TextEncoder(Protocol):
    """Text in, unit vectors out. One model serves documents, queries and listwise prompts."""

    @property
    def dim(self) -> int:
        """The dimension of the vectors."""
        ...

    @property
    def fingerprint(self) -> str:
        """Changes with whatever changes a document vector: weights, prompt, length, pooling."""
        ...

    @property
    def feedback(self) -> Feedback | None:
        """How the model reranks with feedback by default; None: without."""
        ...

    @property
    def evidence(self) -> Evidence | None:
        """What words add to the model's cosines by default; None: nothing."""
        ...

    def encode_queries(self, queries: Sequence[str]) -> Embeddings:
        """Query vectors, float32 [n, dim] of unit length, in input order."""
        ...

    def encode_documents(
        self, documents: Sequence[str], *, on_cut: Callable[[Cut], None] | None = None
    ) -> Embeddings:
        """`on_cut` is called if texts were too long; without it a warning is logged."""
        ...

    def encode_listwise(
        self,
        queries: Sequence[str],
        candidates: Sequence[Sequence[str]],
        **options: Unpack[ListwiseOptions],
    ) -> ListwiseEncoding:
        """One vector per query, of a prompt of the query and its first `depth` candidates."""
        ...

    async def run_async(self, call: Callable[[], T]) -> T:
        """Run a call that uses this encoder without blocking the event loop."""
        ...

    def close(self) -> None:
        """Free the model; a second call does nothing."""
        ...


class Reranker(Protocol):
    """Reranks candidates. Every document comes back once, best first."""

    def rerank(self, query: str, candidates: Sequence[Hit]) -> list[Hit]:
        """The candidates of one query, best first."""
        ...

    def rerank_batch(
        self, queries: Sequence[str], candidates: Sequence[Sequence[Hit]]
    ) -> list[list[Hit]]:
        """One ranking per query; `candidates` has a list for each."""
        ...

    def arerank(self, query: str, candidates: Sequence[Hit]) -> Awaitable[list[Hit]]: ...

    def arerank_batch(
        self, queries: Sequence[str], candidates: Sequence[Sequence[Hit]]
    ) -> Awaitable[list[list[Hit]]]: ...


class Store(Protocol):
    """Documents with one vector each, which can be searched by vector, by id and by filter."""

    @property
    def name(self) -> str:
        """The place and the collection, as error messages name them."""
        ...

    @property
    def dim(self) -> int:
        """The dimension of the vectors; StoreError if the collection is missing."""
        ...

    @property
    def fingerprint(self) -> str | None:
        """The fingerprint of the encoder that wrote the vectors; None if it was not recorded."""
        ...

    def prepare(
        self, dim: int, *, fingerprint: str | None = None, model: str | None = None
    ) -> None:
        """Create the collection, or check that the existing one can take these vectors."""
        ...

    def check(self, documents: Sequence[Document]) -> None:
        """ValueError that names the first document that `upsert` cannot write."""
        ...

    def upsert(self, documents: Sequence[Document], embeddings: Embeddings) -> None:
        """Write documents with their vectors [n, dim]; those with a known id are replaced."""
        ...

    def update_meta(self, documents: Sequence[Document]) -> None:
        """Replace the meta of stored documents; their text and vector stay."""
        ...

    def search(
        self, embedding: Embeddings, *, top_k: int, filter: Filter | Any | None = None
    ) -> list[Hit]:
        """The `top_k` documents nearest to a vector [dim], best first, with their vectors."""
        ...

    def search_batch(
        self, embeddings: Embeddings, *, top_k: int, filter: Filter | Any | None = None
    ) -> list[list[Hit]]:
        """`search` for each row of [n, dim]."""
        ...

    def rescore(self, embedding: Embeddings, ids: Sequence[str]) -> list[Hit]:
        """The documents with these ids scored against a vector [dim], best first."""
        ...

    def get(
        self, ids: Sequence[str], *, with_embeddings: bool = False
    ) -> dict[str, StoredDocument]:
        """The documents with these ids, in their order; unknown ids are left out."""
        ...

    def ids(self) -> Iterator[str]:
        """The ids of all documents, in no particular order."""
        ...

    def delete(self, ids: Sequence[str]) -> None:
        """Delete documents; unknown ids are ignored."""
        ...

    def count(self, filter: Filter | Any | None = None) -> int:
        """How many documents there are, or how many match the filter."""
        ...

    def close(self) -> None:
        """Close what this store opened; a second call does nothing."""
        ...

    def asearch(
        self, embedding: Embeddings, *, top_k: int, filter: Filter | Any | None = None
    ) -> Awaitable[list[Hit]]: ...

    def asearch_batch(
        self, embeddings: Embeddings, *, top_k: int, filter: Filter | Any | None = None
    ) -> Awaitable[list[list[Hit]]]: ...

    def aget(
        self, ids: Sequence[str], *, with_embeddings: bool = False
    ) -> Awaitable[dict[str, StoredDocument]]: ...


class HybridStore(Store, Protocol):
    """A store that can also search by the words of the query."""

    @property
    def hybrid(self) -> bool:
        """Whether the collection has what a search by words needs."""
        ...

    def search_batch(
        self,
        embeddings: Embeddings,
        *,
        top_k: int,
        filter: Filter | Any | None = None,
        queries: Sequence[str] | None = None,
        fusion: Fusion = "rrf",
    ) -> list[list[Hit]]:
        """`search` for each row of [n, dim]. queries: the text of each, for a hybrid search."""
        ...

    def search_words_batch(
        self, queries: Sequence[str], *, top_k: int, filter: Filter | Any | None = None
    ) -> list[list[Hit]]:
        """The `top_k` best documents by words for each query, best first, with their vectors."""
        ...

    def asearch_batch(
        self,
        embeddings: Embeddings,
        *,
        top_k: int,
        filter: Filter | Any | None = None,
        queries: Sequence[str] | None = None,
        fusion: Fusion = "rrf",
    ) -> Awaitable[list[list[Hit]]]: ...

    def ids_without_words(self) -> Iterator[str]:
        """The ids of documents that a search by words cannot find, in no particular order."""
        ...

    def write_words(self, documents: Sequence[Document]) -> int:
        """Let stored documents be found by the words of these texts; how many have words."""
        ...
