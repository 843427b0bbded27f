"""What docs/langchain.md shows runs, and its tables name what is there."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

from langchain_core.runnables import RunnableLambda
from langchain_core.structured_query import StructuredQuery
from langchain_e2rank import E2RankReranker, E2RankRetriever
from langchain_qdrant import QdrantVectorStore
from qdrant_client import QdrantClient

from e2rank_rag.store import LANGCHAIN_LAYOUT, QdrantStore
from tests.integrations.langchain_parts import TEXTS, Bm25, EncoderEmbeddings, documents

PAGE = (Path(__file__).parents[2] / "docs" / "langchain.md").read_text(encoding="utf-8")


async def test_every_example_runs_after_those_before_it(minilm, capsys):
    client = QdrantClient(":memory:")
    QdrantStore(client, "my_documents", layout=LANGCHAIN_LAYOUT).prepare(minilm.dim)
    stock = QdrantVectorStore(client, "my_documents", EncoderEmbeddings(minilm))
    stock.add_texts(TEXTS)
    names = {
        "client": client,
        "qdrant_vector_store": stock,
        "any_retriever": Bm25(docs=documents()),
        "query_constructor": RunnableLambda(lambda _: StructuredQuery(query="falls", filter=None)),
    }
    for block in re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL):
        code = compile(block, "docs/langchain.md", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        waiting = eval(code, names)
        if inspect.isawaitable(waiting):
            await waiting
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "Exercise training."
    assert said[1].endswith("Exercise training prevented falls in older adults.")
    assert len(names["documents"]) == 3
    assert said[-1] == "e2rank.search {'documents': 3}"
    assert names["self_query"].invoke("what prevents falls?") == []
    names["reranker"].close()
    client.close()


def test_every_parameter_is_in_a_table():
    inherited = {"name", "tags", "metadata"}
    for component in (E2RankReranker, E2RankRetriever):
        missing = [name for name in component.model_fields if f"`{name}`" not in PAGE]
        assert set(missing) <= inherited, component
