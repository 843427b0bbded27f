"""All prompt templates of the library, as frozen records that are saved with the model.

The causal templates and task instructions are those of the E2Rank release (arXiv 2510.22733,
appendix C and the evaluation code). Its training code, evaluation code and README have three
different listwise templates. The default here is that of the evaluation; the README's is kept
because the published reference cosines were made with it (`e2rank verify`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

WEB_SEARCH = "Given a web search query, retrieve relevant passages that answer the query"


def fill(template: str, values: dict[str, str]) -> str:
    """Replace `{name}` by its value, in one pass: a `{query}` inside a value stays text."""
    names = "|".join(map(re.escape, values))
    return re.sub(rf"\{{({names})\}}", lambda place: values[place[1]], template)


class Record(BaseModel):
    """A frozen record without unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Task(Record):
    """The instructions for a model. `listwise` ends with a colon; `heading` names the list."""

    query: str = WEB_SEARCH
    listwise: str = (
        "Given a web search query and some relevant documents, "
        "rerank the documents that answer the query:"
    )
    heading: str = "Documents"


class ChatListwise(Record):
    """The listwise prompt of a causal model: one chat turn, thinking off, no end token.

    `before` and `after` hold the chat template's own special tokens. `turn` is encoded as one
    string without special tokens, so a document that contains `<|im_start|>` stays text.
    """

    kind: Literal["chat"] = "chat"
    before: str = "<|im_start|>"
    turn: str = "user\n{instruction}\n{heading}:\n{documents}\nSearch Query: {query}"
    document: str = "[{number}] {document}"
    after: str = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"

    def user_turn(self, task: Task, query: str, documents: Sequence[str]) -> str:
        """The text between `before` and `after`; documents are numbered from 1."""
        numbered = [
            fill(self.document, {"number": str(number), "document": document})
            for number, document in enumerate(documents, start=1)
        ]
        values = {
            "instruction": task.listwise,
            "heading": task.heading,
            "documents": "\n".join(numbered),
            "query": query,
        }
        return fill(self.turn, values)


class SpanListwise(Record):
    """The listwise prompt of a bidirectional model: `[CLS] query [SEP] document [SEP] ...`.

    Only the tokens of the query are pooled, so a prompt without documents gives the vector of the
    plain query.
    """

    kind: Literal["span"] = "span"


class PairPrompt(Record):
    """A query and a document as one string, as in RankT5 (arXiv 2210.10634, section 4.1).

    The document comes last, so that only it is cut if the string is too long.
    """

    template: str = "Query: {query} Document: {document}"

    @field_validator("template")
    @classmethod
    def _document_last(cls, template: str) -> str:
        once = template.count("{query}") == template.count("{document}") == 1
        if not once or not template.endswith("{document}"):
            raise ValueError(
                "a template of pairs has {query} once and ends with {document}, got "
                f"{template!r}"
            )
        return template

    def text(self, query: str, document: str) -> str:
        """The string that the model reads."""
        return fill(self.template, {"query": query, "document": document})


class Prompts(Record):
    """The templates around texts. listwise: None if the model has no listwise prompt."""

    query: str = "{query}"
    document: str = "{document}"
    listwise: Annotated[ChatListwise | SpanListwise, Field(discriminator="kind")] | None = None
    task: Task = Task()

    def query_text(self, query: str) -> str:
        """A query with its prompt."""
        return fill(self.query, {"task": self.task.query, "query": query})

    def document_text(self, document: str) -> str:
        """A document with its prompt."""
        return fill(self.document, {"document": document})


E2RANK = Prompts(query="Instruct: {task}\nQuery:{query}", listwise=ChatListwise())
"""The released E2Rank models, and Qwen3 models in general."""

PLAIN = Prompts(listwise=SpanListwise())
"""Bidirectional encoders that read bare text, such as all-MiniLM-L6-v2."""

E2RANK_README = ChatListwise(
    turn="user\n{instruction}\n{heading}:\n{documents}Search Query:{query}",
    document="[{number}] {document}<|endoftext|>",
)
"""The README's listwise template, whose documents end with a real end token. For checks only."""

NAMED_PROMPTS = {"e2rank": E2RANK, "plain": PLAIN}


def _question(what: str, listed: str, *, answer: str = "answer the question") -> Task:
    return Task(
        query=f"Given {what}, retrieve {listed} that {answer}",
        listwise=f"Given {what} and some relevant {listed}, rerank the {listed} that {answer}:",
    )


def _bright(what: str, listed: str, helps: str, asked: str | None = None) -> Task:
    return Task(
        query=f"Given {asked or what}, retrieve relevant {listed} that help answer the {helps}",
        listwise=(
            f"Given {what} and some relevant {listed}, "
            f"rerank the {listed} that help answer the {helps}:"
        ),
        heading=listed.capitalize(),
    )


_MATH = "a Math problem"
_PONY = "a question about the Pony programming language"

# The question in the listwise prompt, the listed texts, what they help with, and the question in
# the query's prompt.
_BRIGHT = {
    "aops": (_MATH, "examples", "problem"),
    "biology": ("a biology post", "passages", "post", "a post"),
    "earth-science": ("an earth science post", "passages", "post", "a post"),
    "economics": ("an economics post", "passages", "post", "a economics post"),
    "leetcode": ("a coding problem", "examples", "problem"),
    "pony": (_PONY, "passages", "question", "a question about pony program language"),
    "psychology": ("a psychology post", "passages", "post"),
    "robotics": ("a robotics post", "passages", "post"),
    "stackoverflow": ("a StackOverflow post", "passages", "post", "a stackoverflow post"),
    "sustainable-living": (
        "a sustainable living post",
        "passages",
        "post",
        "a sustainable_living post",
    ),
    "theoremqa-questions": (_MATH, "examples", "problem"),
    "theoremqa-theorems": (_MATH, "theorems", "problem"),
}

TASKS: dict[str, Task] = {
    "web-search": Task(),
    "covid": _question("a query on COVID-19", "documents", answer="answer the query"),
    "nfcorpus": Task(
        query="Given a question, retrieve relevant documents that best answer the question",
        listwise=(
            "Given a question and some relevant documents, "
            "rerank the documents that best answer the query:"
        ),
    ),
    "touche": Task(
        query=(
            "Given a question, retrieve detailed and persuasive arguments that answer the question"
        ),
        listwise=(
            "Given a question and some arguments, "
            "rerank the detailed and persuasive arguments that answer the question:"
        ),
        heading="Arguments",
    ),
    "dbpedia": Task(
        query="Given a query, retrieve relevant entity descriptions from DBPedia",
        listwise=(
            "Given a query and some relevant entities, rerank the best descriptions from DBPedia:"
        ),
        heading="Entities",
    ),
    "scifact": Task(
        query="Given a scientific claim, retrieve documents that support or refute the claim",
        listwise=(
            "Given a scientific claim and some relevant documents, "
            "rerank the documents that best support or refute the claim:"
        ),
    ),
    "signal": Task(
        query="Given a news article title, retrieve relevant tweets",
        listwise=(
            "Given a news article title and some relevant tweets, "
            "rerank the tweets that are most relevant to the query:"
        ),
        heading="Tweets",
    ),
    "news": Task(
        # "relevant relevant" is in the release; instructions are used as they were trained.
        query=(
            "Given a news headline, retrieve relevant relevant news articles "
            "that provide important context or background information"
        ),
        listwise=(
            "Given a news article title and some relevant documents, "
            "rerank the documents that best answer the query:"
        ),
    ),
    "robust04": Task(
        query="Given a newswire query, retrieve relevant news articles that address the query."
    ),
    **{f"bright-{name}": _bright(*words) for name, words in _BRIGHT.items()},
}
"""Instructions of the released evaluation, by task. All its reranking used "web-search"."""

SOURCE_TASKS: dict[str, Task] = {
    "msmarco": _question("a web search query", "documents", answer="answer the query"),
    "nq": _question("a question", "Wikipedia documents"),
    "hotpotqa": _question("a multi-hop question", "documents"),
    "trivia": _question("a question", "Wikipedia documents"),
    "miracl": _question("a question", "Wikipedia documents"),
    "t2ranking": _question("a Chinese search query", "documents", answer="answer the query"),
    "dureader": _question("a Chinese search query", "documents", answer="answer the query"),
    "mmarco_chinese": _question(
        "a Chinese web search query", "documents", answer="answer the query"
    ),
    "cMedQAv2": _question("a Chinese medical question", "documents"),
}
"""Instructions of the nine sources of the released ranking data, by the `source` of its lines.

The released training code writes "retrieval" for "retrieve". A missing comma joins its two
instructions of nq to one string, so that its queries got the characters "G" and "i" as
instructions. These are the intended sentences.
"""


def resolve_prompts(prompts: Prompts | str) -> Prompts:
    """The record itself, or the one of this name in `NAMED_PROMPTS`."""
    if isinstance(prompts, Prompts):
        return prompts
    if prompts not in NAMED_PROMPTS:
        raise ValueError(
            f"prompts must be a Prompts record or one of {sorted(NAMED_PROMPTS)}, got {prompts!r}"
        )
    return NAMED_PROMPTS[prompts]


def resolve_task(task: Task | str) -> Task:
    """The record itself, or the one of this name in `TASKS` or `SOURCE_TASKS`."""
    if isinstance(task, Task):
        return task
    named = {**TASKS, **SOURCE_TASKS}
    if task not in named:
        raise ValueError(f"task must be a Task record or one of {sorted(named)}, got {task!r}")
    return named[task]
