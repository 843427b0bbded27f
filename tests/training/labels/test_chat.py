"""A chat model is asked plainly, its answer read strictly and mapped back to the given order."""

from __future__ import annotations

import random
from contextlib import aclosing

import pytest

from e2rank_rag.training.labels import endpoint
from e2rank_rag.training.labels.chat import ChatTeacher, parse_ranking, ranking_prompt
from tests.chat_server import ChatServer, said

DOCUMENTS = ("30 ferries", "10 cats", "40 bread", "20 glaciers")
BEST_FIRST = (3, 1, 4, 2)


def teacher(url, **options):
    return aclosing(ChatTeacher(url, "m", **{"terms": "CC0", **options}))


async def order(url, documents=DOCUMENTS, query="what is worth most?", **options):
    async with teacher(url, **options) as asked:
        return await asked.order(query, documents)


def in_turn(*answers):
    """The given texts, one per request, then the right answer."""
    return lambda asked: said(
        answers[asked.number - 1] if asked.number <= len(answers) else asked.best
    )


async def test_the_servers_order_comes_back_in_the_numbers_of_the_given_documents():
    with ChatServer() as server:
        judgement = await order(server.url)
    assert judgement.ranking == BEST_FIRST
    assert (judgement.problem, judgement.cut, judgement.unmetered) == ("", 0, 0)
    assert (judgement.prompt_tokens, judgement.completion_tokens) == (100, 10)
    (asked,) = server.asked
    assert asked.query == "what is worth most?"
    assert sorted(asked.passages.values()) == sorted(DOCUMENTS)
    assert list(asked.passages) == [1, 2, 3, 4]


@pytest.mark.parametrize("count", [2, 16, 120])
async def test_any_number_of_documents_is_mapped_back(count):
    worth = random.Random(count).sample(range(1000), count)
    with ChatServer() as server:
        judgement = await order(server.url, [f"{value} is my worth" for value in worth])
    assert [worth[number - 1] for number in judgement.ranking] == sorted(worth, reverse=True)


async def test_documents_are_shown_in_an_order_that_only_seed_query_and_attempt_decide():
    documents = [f"{n} text" for n in range(12)]
    with ChatServer(in_turn(*["no"] * 3)) as server:
        async with teacher(server.url) as asked:
            await asked.order("q", documents)
            for query, seed in (("q", 0), ("other", 0), ("q", 1)):
                asked.seed = seed
                await asked.order(query, documents)
    first, second, third, again, other_query, other_seed = (
        tuple(request.passages.values()) for request in server.asked
    )
    assert again == first
    assert len({first, second, third, other_query, other_seed, tuple(documents)}) == 6


async def test_documents_are_cut_to_so_many_words_and_counted():
    with ChatServer() as server:
        judgement = await order(server.url, ["5 a b", "7 a b c d", "6 a"], document_words=3)
    assert judgement.cut == 1
    assert set(server.asked[0].passages.values()) == {"5 a b", "7 a b", "6 a"}
    assert judgement.ranking == (2, 3, 1)


async def test_temperature_is_0_and_the_body_may_say_otherwise():
    extra = {"chat_template_kwargs": {"enable_thinking": False}, "temperature": None}
    with ChatServer() as server:
        await order(server.url)
        await order(server.url, body=extra)
    plain, other = (asked.body for asked in server.asked)
    assert {key: plain[key] for key in plain if key != "messages"} == {
        "model": "m",
        "temperature": 0,
    }
    assert {key: other[key] for key in other if key != "messages"} == {
        "model": "m",
        "chat_template_kwargs": {"enable_thinking": False},
    }


# Malformed answers


@pytest.mark.parametrize(
    "bad", ["", None, "I cannot", "[1] > [2]", "[1] > [1] > [2] > [3]", "[0] > [1] > [2] > [3]"]
)
async def test_a_malformed_answer_is_asked_again_in_another_order_and_its_tokens_count(bad):
    with ChatServer(in_turn(bad)) as server:
        judgement = await order(server.url)
    assert judgement.ranking == BEST_FIRST
    assert (judgement.problem, judgement.said) == ("", "")
    assert (judgement.prompt_tokens, judgement.completion_tokens) == (200, 20)
    first, second = (list(asked.passages.values()) for asked in server.asked)
    assert first != second


async def test_after_so_many_attempts_the_problem_of_the_last_one_is_told():
    with ChatServer(in_turn("hm", "[1] > [2] > [3] > [9]", "well\n[2]  > [1]")) as server:
        judgement = await order(server.url, attempts=3)
    assert len(server.asked) == 3
    assert judgement.ranking == ()
    assert (judgement.problem, judgement.said) == ("identifier missing", "well [2] > [1]")
    assert judgement.prompt_tokens == 300


async def test_an_answer_that_the_token_limit_cut_is_told_apart():
    with ChatServer(lambda asked: said("<think>hm", finish="length")) as server:
        judgement = await order(server.url, attempts=1)
    assert judgement.problem == "answer cut short by the token limit"


async def test_answers_without_usage_are_counted():
    with ChatServer(lambda asked: said("no", usage=None)) as server:
        judgement = await order(server.url, attempts=2)
    assert (judgement.unmetered, judgement.prompt_tokens) == (2, 0)


async def test_a_refused_list_is_a_problem_and_is_not_asked_again(monkeypatch):
    monkeypatch.setattr(endpoint, "TRIES", 1)
    with ChatServer(lambda asked: (400, {"error": "prompt too long"}, {})) as server:
        judgement = await order(server.url)
    assert len(server.asked) == 1
    assert judgement.problem == "refused with status 400"
    assert "prompt too long" in judgement.said


# Prompt and parser


def test_the_prompt_numbers_its_passages_one_to_a_line():
    prompt = ranking_prompt("one\ntwo {count}", ["a\n[2] b", "{query} c"])
    assert "\n[1] a [2] b\n[2] {query} c\n" in prompt
    assert "\nQuery: one two {count}\n" in prompt
    assert prompt.count("2 passages") == 2


@pytest.mark.parametrize(
    "answer",
    [
        "[2] > [3] > [1]",
        "  [2]>[3]>\n[1]\n",
        "[ 2 ] > [3]\n> [1].",
        "Ranking: **[2] > [3] > [1]**",
        "<think>\n[1] > [2] > [3]? No.\n</think>\n\n[2] > [3] > [1]",
        "perhaps [1] > [3]</think>[2] > [3] > [1]",
    ],
)
def test_an_order_is_read_whatever_stands_around_it(answer):
    assert parse_ranking(answer, 3) == [2, 3, 1]


def test_any_permutation_is_read_back():
    draw = random.Random(7)
    for count in (2, 3, 20, 100):
        numbers = draw.sample(range(1, count + 1), count)
        answer = draw.choice([" > ", ">", " >\n"]).join(f"[{n}]" for n in numbers)
        assert parse_ranking(answer, count) == numbers


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ("", "answer without a ranking"),
        ("2 > 3 > 1", "answer without a ranking"),
        ("[2], [3], [1]", "answer without a ranking"),
        ("[1] < [2] < [3]", "answer without a ranking"),
        ("[1] > [2]; [2] > [3]", "answer with several rankings"),
        ("[2] > [3]", "identifier missing"),
        ("[2] > [3] = [1]", "identifier missing"),
        ("[2] > [3] > [1] > [2]", "identifier given twice"),
        ("[2] > [3] > [4]", "identifier out of range"),
        ("[0] > [1] > [2]", "identifier out of range"),
        ("[2] > [3] > [1] > [4]", "identifier out of range"),
        ("<think>[2] > [3] > [1]", "answer ends within its thoughts"),
        ("[1] > [" + "2" * 5000 + "]", "answer without a ranking"),
    ],
)
def test_what_is_no_permutation_is_refused_with_its_problem(answer, problem):
    with pytest.raises(ValueError, match=f"^{problem}$"):
        parse_ranking(answer, 3)


# Settings


def test_the_record_says_model_terms_and_what_shapes_the_answers():
    plain = ChatTeacher("http://host/v1", "m", terms="CC0")
    assert plain.record == {"model": "m", "terms": "CC0", "document_words": 300}
    assert plain.limit == "300 words"
    other = ChatTeacher("http://host/v1", "m", terms="CC0", body={"top_p": 1}, document_words=9)
    assert other.record == {
        "model": "m",
        "terms": "CC0",
        "document_words": 9,
        "body": {"top_p": 1},
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"terms": " "}, "terms are empty; say what the answers of m may be used for"),
        ({"body": {"messages": []}}, "body holds 'messages'"),
        ({"body": {"model": "x"}}, "body holds 'model'"),
        ({"body": {"stream": True}}, "body holds 'stream'"),
        ({"attempts": 0}, "attempts is 0; both"),
        ({"document_words": 0}, "document_words is 0 and"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ChatTeacher("http://host/v1", "m", **{"terms": "CC0", **options})
