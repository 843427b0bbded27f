"""A chat model as a teacher, on any server with OpenAI's chat completions interface.

Each attempt shows the documents in another random order: chat models prefer some places of a list,
and at temperature 0 the same prompt would give the same malformed answer again.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Any

from e2rank_rag.prompts import fill
from e2rank_rag.training.labels.endpoint import ChatEndpoint, Completion, Refused
from e2rank_rag.training.labels.teacher import Judgement

PROMPT = """\
Below are a search query and {count} passages, each behind its number in brackets.

{passages}

Query: {query}

Order the {count} passages by how well they answer the query, the best one first. Reply with one \
line that names each number exactly once, in the form [2] > [1] > ..., and with nothing else: no \
explanation."""
"""The idea of the labelling prompt of arXiv 2510.22733 (table 8), in other words."""

SET_HERE = ("model", "messages", "stream")

_RANKING = re.compile(r"\[\s*[0-9]{1,6}\s*\](?:\s*>\s*\[\s*[0-9]{1,6}\s*\])+")
_IDENTIFIER = re.compile("[0-9]+")


@dataclass
class ChatTeacher:
    """`async with aclosing(ChatTeacher(endpoint, model, terms="Apache-2.0")) as teacher: ...`

    endpoint: the address before `/chat/completions`, such as "http://localhost:8000/v1".
    terms: what the model's answers may be used for, in words or as a URL; kept in the data.
    key_env, timeout_s: see `ChatEndpoint`.
    body: more fields of a request, such as `{"chat_template_kwargs": {"enable_thinking": False}}`
        for Qwen3. A value of None removes a field: `{"temperature": None}`, whose default is 0. The
        body is kept in the data, because it changes the answers; put keys into `key_env`.
    document_words: documents are cut to so many words. Words end at white space, so a text without
        any, as in Chinese, is not cut.
    attempts: how often a list is asked for before it is dropped.
    seed: for the order in which documents are shown.

    Raises ValueError for empty terms, for a field in `body` that the teacher sets itself
    (`SET_HERE`), and for document_words or attempts below 1.
    """

    endpoint: str
    model: str
    _: KW_ONLY
    terms: str
    key_env: str | None = None
    body: Mapping[str, Any] | None = None
    document_words: int = 300
    attempts: int = 3
    timeout_s: float = 300.0
    seed: int = 0
    record: dict[str, Any] = field(init=False)
    limit: str = field(init=False)

    def __post_init__(self) -> None:
        body = dict(self.body or {})
        if not self.terms.strip():
            raise ValueError(
                f"terms are empty; say what the answers of {self.model} may be used for, in words "
                "or as a URL"
            )
        for name in SET_HERE:
            if name in body:
                raise ValueError(f"body holds {name!r}, which the teacher sets; leave it out")
        if self.document_words < 1 or self.attempts < 1:
            raise ValueError(
                f"document_words is {self.document_words} and attempts is {self.attempts}; both "
                "must be 1 or more"
            )
        self.limit = f"{self.document_words:,} words"
        self.record = {
            "model": self.model,
            "terms": self.terms,
            "document_words": self.document_words,
            **({"body": body} if body else {}),
        }
        fields = {"model": self.model, "temperature": 0, **body}
        self._fields = {name: value for name, value in fields.items() if value is not None}
        self._chat = ChatEndpoint(self.endpoint, key_env=self.key_env, timeout_s=self.timeout_s)

    async def order(self, query: str, documents: Sequence[str]) -> Judgement:
        """The model's order of the documents, or the problem of the last attempt."""
        words = [document.split() for document in documents]
        texts = [" ".join(each[: self.document_words]) for each in words]
        judgement = Judgement(cut=sum(len(each) > self.document_words for each in words))
        for attempt in range(self.attempts):
            shown = list(range(1, len(texts) + 1))
            random.Random(f"{self.seed} {attempt} {query}").shuffle(shown)
            prompt = ranking_prompt(query, [texts[number - 1] for number in shown])
            messages = [{"role": "user", "content": prompt}]
            try:
                completion = await self._chat.complete({**self._fields, "messages": messages})
            except Refused as refused:
                return replace(judgement, problem=refused.problem, said=refused.said)
            judgement = _with_usage(judgement, completion)
            said = completion.choices[0].message.content or ""
            try:
                ranking = parse_ranking(said, len(texts))
            except ValueError as error:
                cut = completion.choices[0].finish_reason == "length"
                problem = "answer cut short by the token limit" if cut else str(error)
                said = self._chat.presentable(said)
                judgement = replace(judgement, problem=problem, said=said)
            else:
                chosen = tuple(shown[number - 1] for number in ranking)
                return replace(judgement, ranking=chosen, problem="", said="")
        return judgement

    async def aclose(self) -> None:
        """Close the connections."""
        await self._chat.aclose()


def ranking_prompt(query: str, documents: Sequence[str]) -> str:
    """The prompt. Line breaks in texts become spaces, so that each line is one document."""
    lines = [f"[{number}] {_one_line(text)}" for number, text in enumerate(documents, start=1)]
    values = {"passages": "\n".join(lines), "query": _one_line(query)}
    return fill(PROMPT, {**values, "count": str(len(documents))})


def parse_ranking(answer: str, count: int) -> list[int]:
    """The permutation of 1 to `count` in an answer like `[2] > [1] > [3]`, best first.

    Text up to `</think>` is ignored; white space may be anywhere.
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
