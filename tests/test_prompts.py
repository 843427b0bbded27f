"""The released template strings, written out by hand, and what filling them may not do."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from e2rank_rag.prompts import (
    E2RANK,
    E2RANK_README,
    NAMED_PROMPTS,
    PLAIN,
    TASKS,
    ChatListwise,
    PairPrompt,
    Prompts,
    SpanListwise,
    Task,
    fill,
    resolve_prompts,
    resolve_task,
)
from e2rank_rag.recipe import ListwiseBudget, Recipe


def listwise(template, task, query, documents):
    """A whole prompt as text, specials included."""
    return template.before + template.user_turn(task, query, documents) + template.after


def test_query_text_is_the_released_one():
    assert E2RANK.query_text("where do ferries go") == (
        "Instruct: Given a web search query, retrieve relevant passages that answer the query\n"
        "Query:where do ferries go"
    )


def test_document_text_is_the_document():
    assert E2RANK.document_text("A ferry.") == "A ferry."


def test_listwise_prompt_is_the_one_of_the_released_evaluation():
    assert listwise(E2RANK.listwise, Task(), "where", ["A ferry.", "A bridge.", "Bread."]) == (
        "<|im_start|>user\n"
        "Given a web search query and some relevant documents, "
        "rerank the documents that answer the query:\n"
        "Documents:\n"
        "[1] A ferry.\n"
        "[2] A bridge.\n"
        "[3] Bread.\n"
        "Search Query: where<|im_end|>\n"
        "<|im_start|>assistant\n"
        "<think>\n"
        "\n"
        "</think>\n"
        "\n"
    )


def test_readme_variant_puts_end_tokens_into_the_list_and_joins_the_query_to_it():
    assert listwise(E2RANK_README, Task(), "where", ["A ferry.", "A bridge."]) == (
        "<|im_start|>user\n"
        "Given a web search query and some relevant documents, "
        "rerank the documents that answer the query:\n"
        "Documents:\n"
        "[1] A ferry.<|endoftext|>\n"
        "[2] A bridge.<|endoftext|>Search Query:where<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )


def test_task_gives_instruction_and_heading():
    turn = ChatListwise().user_turn(TASKS["touche"], "tea?", ["Tea is good."])
    assert turn == (
        "user\n"
        "Given a question and some arguments, "
        "rerank the detailed and persuasive arguments that answer the question:\n"
        "Arguments:\n"
        "[1] Tea is good.\n"
        "Search Query: tea?"
    )


def test_documents_are_numbered_from_one():
    lines = ChatListwise().user_turn(Task(), "q", ["x"] * 12).splitlines()
    assert lines[3:-1] == [f"[{number}] x" for number in range(1, 13)]


def test_prompt_without_documents_keeps_heading_and_query():
    turn = ChatListwise().user_turn(Task(listwise="Rank:"), "q", [])
    assert turn == "user\nRank:\nDocuments:\n\nSearch Query: q"


@pytest.mark.parametrize("place", ["{query}", "{documents}", "{number}", "{task}", "{instruction}"])
def test_places_inside_texts_stay_text(place):
    turn = ChatListwise().user_turn(Task(listwise="Rank:"), f"q {place}", [f"d {place}", "e"])
    assert turn == (f"user\nRank:\nDocuments:\n[1] d {place}\n[2] e\nSearch Query: q {place}")
    assert E2RANK.query_text(f"q {place}").endswith(f"\nQuery:q {place}")
    assert E2RANK.document_text(f"d {place}") == f"d {place}"


def test_fill_leaves_unknown_places_and_backslashes_alone():
    assert fill(r"{a} {b} \1", {"a": r"\g<0>{b}"}) == r"\g<0>{b} {b} \1"


@pytest.mark.parametrize("name", sorted(TASKS))
def test_every_task_is_a_pair_of_sentences_of_which_the_listwise_ends_with_a_colon(name):
    task = TASKS[name]
    assert len(task.query.split()) > 5
    assert len(task.listwise.split()) > 5
    assert task.listwise.endswith(":")
    assert not task.query.endswith(":")
    assert task.heading.isalpha()
    assert "{" not in task.query + task.listwise


def test_heading_names_what_the_instruction_lists():
    for name, task in TASKS.items():
        listed = task.heading.lower()
        # DBPedia's sentence lists "entities" and reranks "descriptions".
        assert f"relevant {listed}," in task.listwise or name == "touche", name


@pytest.mark.parametrize("record", [Task, ChatListwise, SpanListwise, Prompts, ListwiseBudget])
def test_records_refuse_unknown_fields(record):
    with pytest.raises(ValidationError, match="templat"):
        record(templat="x")


def test_records_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        E2RANK.query = "x"


@pytest.mark.parametrize(
    "prompts",
    [
        E2RANK,
        PLAIN,
        Prompts(listwise=None),
        E2RANK.model_copy(update={"listwise": E2RANK_README, "task": TASKS["scifact"]}),
    ],
)
def test_prompts_survive_the_way_through_json(prompts):
    recipe = Recipe(pooling="mean", prompts=prompts, listwise=ListwiseBudget(depth=3))
    again = Recipe.model_validate_json(recipe.model_dump_json())
    assert again == recipe
    assert type(again.prompts.listwise) is type(prompts.listwise)


def test_a_kind_of_listwise_prompt_that_is_not_known_is_refused():
    with pytest.raises(ValidationError, match="kind"):
        Prompts.model_validate({"listwise": {"kind": "poem"}})


def test_names_stand_for_records():
    assert resolve_prompts("e2rank") is E2RANK
    assert resolve_prompts(PLAIN) is PLAIN
    assert resolve_task("covid") is TASKS["covid"]
    assert resolve_task(TASKS["covid"]) is TASKS["covid"]
    assert set(NAMED_PROMPTS) == {"e2rank", "plain"}


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"one of \['e2rank', 'plain'\], got 'e5'"):
        resolve_prompts("e5")
    with pytest.raises(ValueError, match=r"'web-search'.*got 'trec'"):
        resolve_task("trec")


def test_a_pair_is_the_string_of_rankt5_and_its_texts_stay_as_they_are():
    assert PairPrompt().text("cats {document}", "dogs {query}") == (
        "Query: cats {document} Document: dogs {query}"
    )


@pytest.mark.parametrize("template", ["{document} {query}", "{document}", "{query} {document}."])
def test_a_template_of_pairs_ends_with_the_document(template):
    with pytest.raises(ValueError, match=r"has \{query\} once and ends with \{document\}, got"):
        PairPrompt(template=template)
