"""A chat model as a teacher, at any address that speaks OpenAI's chat completions.

The documents are shown in an order drawn anew for each attempt: chat models favour places in a
list, and at temperature 0 the same question would bring the same malformed answer.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from e2rank_rag.prompts import fill
from e2rank_rag.training.chat_endpoint import ChatEndpoint, Completion, Refused
from e2rank_rag.training.labeling import Judgement

PROMPT = """\
Below are a search query and {count} passages, each behind its number in brackets.

{passages}

Query: {query}

Order the {count} passages by how well they answer the query, the best one first. Reply with one \
line that names each number exactly once, in the form [2] > [1] > ..., and with nothing else: no \
explanation."""
"""The idea of the labelling prompt of arXiv 2510.22733 (table 8), in words of our own."""

SET_HERE = ("model", "messages", "stream")

_RANKING = re.compile(r"\[\s*[0-9]{1,6}\s*\](?:\s*>\s*\[\s*[0-9]{1,6}\s*\])+")
_IDENTIFIER = re.compile("[0-9]+")


class ChatTeacher:
    """`async with aclosing(ChatTeacher(endpoint, model, terms="Apache-2.0")) as teacher: ...`

    endpoint: the address before `/chat/completions`, such as "http://localhost:8000/v1".
    terms: what the model's answers may be used for, in words or as a URL; goes into the data.
    key_env, timeout_s: see `ChatEndpoint`.
    body: more fields of a request, such as `{"chat_template_kwargs": {"enable_thinking": False}}`
        for Qwen3. None leaves a field out: `{"temperature": None}`, which is 0 by default. Goes
        into the data, as it changes the answers: keys belong into `key_env`.
    document_words: documents are cut there. Words end at white space: a text without any, as in
        Chinese, stays whole.
    attempts: how often a list is asked for before it is dropped. seed: of the order that is shown.
    """

    def __init__(
        self,
        endpoint: str,
        model: str,
        *,
        terms: str,
        key_env: str | None = None,
        body: Mapping[str, Any] | None = None,
        document_words: int = 300,
        attempts: int = 3,
        timeout_s: float = 300.0,
        seed: int = 0,
    ) -> None:
        body = dict(body or {})
        if not terms.strip():
            raise ValueError(
                f"terms are empty; say what the answers of {model} may be used for, in words or as "
                "a URL"
            )
        for name in SET_HERE:
            if name in body:
                raise ValueError(f"body holds {name!r}, which is set here; leave it out")
        if document_words < 1 or attempts < 1:
            raise ValueError(
                f"document_words is {document_words} and attempts is {attempts}; both are 1 or more"
            )
        self.document_words, self.attempts, self.seed = document_words, attempts, seed
        self.limit = f"{document_words:,} words"
        self.record: dict[str, Any] = {
            "model": model,
            "terms": terms,
            "document_words": document_words,
        }
        if body:
            self.record["body"] = body
        fields = {"model": model, "temperature": 0, **body}
        self._fields = {name: value for name, value in fields.items() if value is not None}
        self._endpoint = ChatEndpoint(endpoint, key_env=key_env, timeout_s=timeout_s)

    async def order(self, query: str, documents: Sequence[str]) -> Judgement:
        """The documents ordered by the model, or the problem of the last of all attempts."""
        words = [document.split() for document in documents]
        texts = [" ".join(each[: self.document_words]) for each in words]
        judgement = Judgement(cut=sum(len(each) > self.document_words for each in words))
        for attempt in range(self.attempts):
            shown = list(range(1, len(texts) + 1))
            random.Random(f"{self.seed} {attempt} {query}").shuffle(shown)
            prompt = ranking_prompt(query, [texts[number - 1] for number in shown])
            messages = [{"role": "user", "content": prompt}]
            try:
                completion = await self._endpoint.complete({**self._fields, "messages": messages})
            except Refused as refused:
                return replace(judgement, problem=refused.problem, said=refused.said)
            judgement = _with_usage(judgement, completion)
            said = completion.choices[0].message.content or ""
            try:
                ranking = parse_ranking(said, len(texts))
            except ValueError as error:
                cut = completion.choices[0].finish_reason == "length"
                problem = "answer cut short by the token limit" if cut else str(error)
                said = self._endpoint.presentable(said)
                judgement = replace(judgement, problem=problem, said=said)
            else:
                chosen = tuple(shown[number - 1] for number in ranking)
                return replace(judgement, ranking=chosen, problem="", said="")
        return judgement

    async def aclose(self) -> None:
        """Close the connections."""
        await self._endpoint.aclose()


def ranking_prompt(query: str, documents: Sequence[str]) -> str:
    """The question for an order. Line breaks in texts become spaces: one line is one passage."""
    lines = [f"[{number}] {_one_line(text)}" for number, text in enumerate(documents, start=1)]
    values = {"passages": "\n".join(lines), "query": _one_line(query)}
    return fill(PROMPT, {**values, "count": str(len(documents))})


def parse_ranking(answer: str, count: int) -> list[int]:
    """The permutation of 1 to `count` in an answer like `[2] > [1] > [3]`, best first.

    What the model thought before, up to `</think>`, is left out; white space may be anywhere.
    Raises ValueError with the problem in a few words.
    """
    said = answer.rpartition("</think>")[2]
    if "<think>" in said:
        raise ValueError("answer ends within its thoughts")
    found = _RANKING.findall(said)
    if len(found) != 1:
        raise ValueError("answer with several rankings" if found else "answer without a ranking")
    ranking = [int(number) for number in _IDENTIFIER.findall(found[0])]
    if not all(1 <= number <= count for number in ranking):
        raise ValueError("identifier out of range")
    if len(set(ranking)) < len(ranking):
        raise ValueError("identifier given twice")
    if len(ranking) < count:
        raise ValueError("identifier missing")
    return ranking


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _with_usage(judgement: Judgement, completion: Completion) -> Judgement:
    usage = completion.usage
    if usage is None:
        return replace(judgement, unmetered=judgement.unmetered + 1)
    return replace(
        judgement,
        prompt_tokens=judgement.prompt_tokens + usage.prompt_tokens,
        completion_tokens=judgement.completion_tokens + usage.completion_tokens,
    )
