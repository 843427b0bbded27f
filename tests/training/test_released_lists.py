"""The released E2Rank lists are trained on as they are: so many of each source, batches of one
source, each under the instruction of its source."""

from __future__ import annotations

import json
import random

import pytest

from e2rank_rag.models.encoder import Encoder
from e2rank_rag.models.tokenizer_files import load_tokenizer
from e2rank_rag.prompts import E2RANK, SOURCE_TASKS
from e2rank_rag.training import train
from e2rank_rag.training.config import ListwiseConfig, ResRankConfig, Source
from e2rank_rag.training.lists import groups_of, task_of
from e2rank_rag.training.loop import StageTrainer
from e2rank_rag.training.sources import read_dev, read_training
from e2rank_rag.training.stages.listwise import ListwiseData

COUNTS = dict(zip(SOURCE_TASKS, [6, 9, 5, 12, 7, 4, 8, 5, 10], strict=True))
DOCUMENTS = 4


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """Lines with the fields of the released file: nine sources, of which some are longer."""
    lines = [
        {
            "query": f"{source} {number}",
            "document": [f"document {place} of {source} {number}" for place in range(DOCUMENTS)],
            "ranking": [2, 1, 4, 3],
            "source": source,
        }
        for source, count in COUNTS.items()
        for number in range(count)
    ]
    path = tmp_path_factory.mktemp("released") / "train.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines[::2] + lines[1::2]))
    return path


def test_a_limit_is_of_each_source_of_the_released_file(released, bert):
    (examples,) = read_training([Source(path=released, limit=6)], bert, None, seed=0)
    found = {source: 0 for source in COUNTS}
    for example in examples:
        assert example.task == example.source
        assert example.labels == (3.0, 4.0, 1.0, 2.0)
        found[example.source] += 1
    assert found == {source: min(count, 6) for source, count in COUNTS.items()}
    (dev,) = read_dev([Source(path=released, limit=2)], bert, None, seed=0)
    assert len(dev.queries) == 9 * 2


def test_what_a_line_or_the_configuration_says_goes_before_what_a_source_is_known_for(
    tmp_path, bert
):
    path = tmp_path / "lists.jsonl"
    lines = [
        {"query": "a", "pos": "x", "source": "nq"},
        {"query": "b", "pos": "x", "source": "nq", "task": "find b"},
        {"query": "c", "pos": "x", "source": "crawl"},
        {"query": "d", "pos": "x", "source": {"url": "http://x"}},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def tasks(**stated):
        (examples,) = read_training([Source(path=path, **stated)], bert, None, seed=0)
        return [example.task for example in examples]

    assert tasks() == ["nq", "find b", None, None]
    assert tasks(task="find all") == ["find all", "find b", "find all", "find all"]
    (examples,) = read_training([Source(path=path)], bert, None, seed=0)
    assert [len(group) for group in groups_of([examples])] == [1, 1, 1, 1]


SETTINGS = {
    "pooling": "last",
    "prompts": "e2rank",
    "list_size": DOCUMENTS,
    "trainer": {
        "max_steps": 12,
        "per_device_train_batch_size": 3,
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 1,
    },
}


def read_of(batch, tokenizer, name):
    ids = batch[name]["input_ids"]
    mask = batch[name]["attention_mask"].bool()
    return [tokenizer.decode(row[kept]) for row, kept in zip(ids, mask, strict=True)]


@pytest.mark.parametrize("mode", ["joint", "adapter"])
def test_batches_are_of_one_source_with_the_instructions_of_that_source(
    mode, released, tiny_qwen3, tmp_path, monkeypatch
):
    batches = []
    compute = StageTrainer.compute_loss

    def watched(self, model, inputs, **options):
        batches.append(inputs)
        return compute(self, model, inputs, **options)

    monkeypatch.setattr(StageTrainer, "compute_loss", watched)
    asked = watch_queries(monkeypatch)
    stated = {
        **SETTINGS,
        "init_from": str(tiny_qwen3),
        "output": tmp_path / "model",
        "mode": mode,
        "lora": {"rank": 4} if mode == "adapter" else None,
        "prompt": {"depths": [2]},
        "data": [{"path": released, "limit": 6}],
    }
    train(ListwiseConfig.model_validate(stated))
    tokenizer = load_tokenizer(tiny_qwen3)
    seen = set()
    for batch in batches:
        prompts = read_of(batch, tokenizer, "prompts")
        (source,) = {prompt.rpartition("Query: ")[2].split()[0] for prompt in prompts}
        seen.add(source)
        task = SOURCE_TASKS[source]
        for prompt in prompts:
            assert f"user\n{task.listwise}\n{task.heading}:\n" in prompt
        if mode == "joint":
            for query in read_of(batch, tokenizer, "queries"):
                assert query.startswith(f"Instruct: {task.query}\nQuery:{source} ")
    assert len(seen) > 3
    if mode == "adapter":  # plain queries are encoded once, before the first step
        for instruction, query in asked:
            assert instruction == SOURCE_TASKS[query.split()[0]].query


def watch_queries(monkeypatch):
    """Instruction and text of each query that an encoder is asked for."""
    asked = []
    encode = Encoder.encode_queries

    def watched(self, queries, **options):
        asked.extend((self.recipe.prompts.task.query, query) for query in queries)
        return encode(self, queries, **options)

    monkeypatch.setattr(Encoder, "encode_queries", watched)
    return asked


@pytest.mark.parametrize("mode", ["joint", "frozen"])
def test_a_resrank_reads_each_batch_under_the_instruction_of_its_source(
    mode, released, tiny_qwen3, tmp_path, monkeypatch
):
    batches = []
    compute = StageTrainer.compute_loss

    def watched(self, model, inputs, **options):
        batches.append(inputs)
        return compute(self, model, inputs, **options)

    monkeypatch.setattr(StageTrainer, "compute_loss", watched)
    stated = {
        **SETTINGS,
        "init_from": str(tiny_qwen3),
        "output": tmp_path / "model",
        "mode": mode,
        "data": [{"path": released, "limit": 6}],
    }
    train(ResRankConfig.model_validate(stated))
    tokenizer = load_tokenizer(tiny_qwen3)
    sides = ["queries", "lists"] if mode == "joint" else ["lists"]
    for batch in batches:
        for side in sides:
            texts = read_of(batch, tokenizer, side)
            (source,) = {text.partition("Query:")[2].split()[0] for text in texts}
            for text in texts:
                assert f"Instruct: {SOURCE_TASKS[source].query}\nQuery:{source} " in text


def test_lists_of_several_tasks_make_no_batch(released, bert):
    config = ListwiseConfig.model_validate(
        {"init_from": "m", "output": "o", "mode": "joint", "data": [{"path": released}]}
    )
    (examples,) = read_training([Source(path=released)], bert, None, seed=0)
    data = ListwiseData(config, {})
    lists = [data.sample(example, random.Random(0)) for example in examples]
    with pytest.raises(ValueError, match="the lists of a batch have several tasks"):
        task_of(lists)


@pytest.mark.parametrize("source", SOURCE_TASKS)
def test_the_instructions_of_a_source_are_whole_sentences(source):
    task = SOURCE_TASKS[source]
    assert task.query.startswith("Given a ")
    assert task.query.split()[-3:][0] in ("answer", "that")
    assert task.listwise.startswith("Given a ")
    assert task.listwise.endswith(":")
    dressed = E2RANK.model_copy(update={"task": task}).query_text("q")
    assert dressed == f"Instruct: {task.query}\nQuery:q"
