"""E2RankTranslator: the filters of LangChain's SelfQueryRetriever as filters of Qdrant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from langchain_core.structured_query import (
    Comparator,
    Comparison,
    Operation,
    Operator,
    StructuredQuery,
    Visitor,
)
from qdrant_client import models

from e2rank_rag.store.filters import to_qdrant_filter
from langchain_e2rank._collection import Conditions
from langchain_e2rank.vectorstore import E2RankVectorStore

NEGATIONS = {Comparator.NE: Comparator.EQ, Comparator.NIN: Comparator.IN}


class E2RankTranslator(Visitor):
    """Translates the structured queries of a language model for an E2RankVectorStore.

        retriever = SelfQueryRetriever.from_llm(
            llm, store, "news", attributes, structured_query_translator=E2RankTranslator(store)
        )

    filter: conditions that every search adds to those of the query, such as the tenant's. (The
        query's filter replaces one in the retriever's `search_kwargs`.)

    Comparisons have the meaning of `e2rank_rag.types.Filter`: "eq" on a list asks for one matching
    element. Raises ValueError for a comparison that has no such meaning.
    """

    allowed_comparators = (
        Comparator.EQ,
        Comparator.NE,
        Comparator.GT,
        Comparator.GTE,
        Comparator.LT,
        Comparator.LTE,
        Comparator.IN,
        Comparator.NIN,
    )
    allowed_operators = (Operator.AND, Operator.OR, Operator.NOT)

    def __init__(self, vectorstore: E2RankVectorStore, *, filter: Conditions = None) -> None:
        self._metadata_key = vectorstore.store.layout.metadata_key
        self._always = to_qdrant_filter(filter, self._metadata_key)

    def visit_structured_query(
        self, structured_query: StructuredQuery
    ) -> tuple[str, dict[str, Any]]:
        """The text of the query, and the other arguments of the search."""
        asked = structured_query.filter
        conditions = [self._always] if self._always is not None else []
        if asked is not None:
            conditions.append(asked.accept(self))
        if not conditions:
            return structured_query.query, {}
        return structured_query.query, {"filter": models.Filter(must=list(conditions))}

    def visit_operation(self, operation: Operation) -> models.Filter:
        """The filter for "and", "or" and "not"."""
        self._validate_func(operation.operator)
        parts = [argument.accept(self) for argument in operation.arguments]
        if not parts or (operation.operator == Operator.NOT and len(parts) > 1):
            # Qdrant ignores an empty "or", and "not" of several conditions has two meanings.
            raise ValueError(
                f"{operation.operator.value!r} of {len(parts)} conditions is not defined: 'not' "
                f"takes one, 'and' and 'or' take one or more"
            )
        if operation.operator == Operator.AND:
            return models.Filter(must=parts)
        if operation.operator == Operator.OR:
            return models.Filter(should=parts)
        return models.Filter(must_not=parts)

    def visit_comparison(self, comparison: Comparison) -> models.Filter:
        """The filter for a condition on one metadata field."""
        self._validate_func(comparison.comparator)
        positive = NEGATIONS.get(comparison.comparator, comparison.comparator)
        if positive != comparison.comparator:
            return models.Filter(must_not=[self._compared(positive, comparison)])
        return self._compared(positive, comparison)

    def _compared(self, comparator: Comparator, comparison: Comparison) -> models.Filter:
        key, value = comparison.attribute, comparison.value
        if comparator == Comparator.EQ:
            return self._equal(key, value)
        if comparator != Comparator.IN:
            return self._plain({key: {comparator.value: _date_in(value) or value}})
        if not isinstance(value, list | tuple) or not value:
            raise ValueError(f"{key!r} is in {value!r}, which is not a list of values")
        return models.Filter(should=[self._equal(key, one) for one in value])

    def _equal(self, key: str, value: Any) -> models.Filter:
        date = _date_in(value)
        if date is not None:
            return self._plain({key: {"gte": date, "lte": date}})
        if isinstance(value, Mapping | list | tuple):
            raise ValueError(f"{key!r} cannot be equal to {value!r}: give a str, bool or number")
        return self._plain({key: value})

    def _plain(self, conditions: Mapping[str, Any]) -> models.Filter:
        filter = to_qdrant_filter(conditions, self._metadata_key)
        assert filter is not None
        return filter


def _date_in(value: Any) -> str | None:
    """The date in LangChain's form, `{"date": "2024-01-01", "type": "date"}`; None for others."""
    if isinstance(value, Mapping) and value.get("type") in ("date", "datetime"):
        date = value.get(value["type"])
        return date if isinstance(date, str) else None
    return None
