"""ResRank: stored vectors and fresh ones rank alike, a folder opens as what was saved."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from e2rank_rag.errors import CheckpointError
from e2rank_rag.models.encoder import Encoder
from e2rank_rag.models.residual import ResidualHead
from e2rank_rag.models.resrank import HEAD_FILE, ResRank
from e2rank_rag.models.runtime import loaded_models
from e2rank_rag.recipe import EncoderOf, ResidualLayout, ResRankRecipe
from e2rank_rag.rerankers import ResidualReranker, Window, load_reranker
from e2rank_rag.types import Document, Hit

DOCUMENTS = ["cats purr", "the bridge over the river", "bread", "a ferry to the island", "dogs"]
QUERIES = ["cats and dogs", "how to get to the island"]


def make(folder, *, options=None, **layout):
    """A ResRank with the weights of the folder twice, and a head of its own."""
    encoder, reranker = (Encoder.from_pretrained(folder, **(options or {})) for _ in range(2))
    made = ResidualLayout(**layout)
    torch.manual_seed(5)
    head = ResidualHead(32, 32, made, scale=1.5, gates=(0.8, 0.6))
    recipe = ResRankRecipe(encoder=EncoderOf(base=str(folder), digest=encoder.digest), layout=made)
    return ResRank(encoder, reranker, head, recipe, name="made")


@pytest.fixture
def resrank(tiny_bert):
    with make(tiny_bert) as model:
        yield model


def hits(vectors=None):
    return [
        Hit(Document(str(i), text), 0.0, None if vectors is None else vectors[i])
        for i, text in enumerate(DOCUMENTS)
    ]


def scores(ranking):
    return {hit.document.id: hit.score for hit in ranking}


def test_scores_are_cosines_of_the_vectors_that_rank(resrank):
    vectors = resrank.encoder.encode_documents(DOCUMENTS)
    found = resrank.encode_lists(QUERIES, [vectors, vectors[:2]])
    assert [part.shape for part in found.passages] == [(5, 32), (2, 32)]
    for part in (found.queries, *found.passages):
        np.testing.assert_allclose(np.linalg.norm(part, axis=1), 1, atol=1e-5)
    expected = dict(zip("01234", (found.passages[0] @ found.queries[0]).tolist(), strict=True))
    assert scores(ResidualReranker(resrank).rerank(QUERIES[0], hits())) == pytest.approx(expected)


def test_stored_vectors_rank_as_vectors_encoded_on_the_spot(resrank):
    reranker = ResidualReranker(resrank)
    stored = resrank.encoder.encode_documents(DOCUMENTS)
    (fresh,) = reranking = reranker.rerank_batch(QUERIES[:1], [hits()])
    report = reranking.report
    assert (report.vectors.reused, report.vectors.encoded) == (0, 5)
    (kept,) = reranking = reranker.rerank_batch(QUERIES[:1], [hits(stored)])
    assert reranking.vectors is None
    report = reranking.report
    assert (report.vectors.reused, report.vectors.encoded) == (5, 0)
    assert scores(kept) == pytest.approx(scores(fresh), abs=1e-6)
    assert [hit.document.id for hit in kept] == [hit.document.id for hit in fresh]


def test_encoder_and_reranker_work_in_one_thread(resrank, tmp_path):
    vectors = resrank.encoder.encode_documents(DOCUMENTS)
    expected = resrank.encode_lists(QUERIES, [vectors, vectors])
    with ResRank.from_pretrained(resrank.save(tmp_path / "saved")) as opened:
        opened.encode_lists(["warm"], [vectors])
        threads = []
        modules = (opened.encoder.loaded.transformer, opened.lists.backbone.transformer)
        assert modules[0] is not modules[1]
        hooks = [
            module.register_forward_hook(lambda *_: threads.append(threading.get_ident()))
            for module in modules
        ]
        found = opened.encode_lists(QUERIES, [vectors, vectors])
        for hook in hooks:
            hook.remove()
    assert len(threads) == 2
    assert len({*threads, threading.get_ident()}) == 2
    np.testing.assert_allclose(found.queries, expected.queries, atol=1e-6)


def test_closing_waits_for_a_list_that_is_being_read(resrank, tmp_path):
    vectors = resrank.encoder.encode_documents(DOCUMENTS)
    expected = resrank.encode_lists(QUERIES, [vectors, vectors])
    opened = ResRank.from_pretrained(resrank.save(tmp_path / "saved"))
    inside, go_on = threading.Event(), threading.Event()

    def hold(*_):
        inside.set()
        assert go_on.wait(10)

    opened.lists.backbone.transformer.register_forward_hook(hold)
    with ThreadPoolExecutor(2) as pool:
        running = pool.submit(opened.encode_lists, QUERIES, [vectors, vectors])
        assert inside.wait(10)
        closing = pool.submit(opened.close)
        go_on.set()
        np.testing.assert_allclose(running.result(10).queries, expected.queries, atol=1e-6)
        closing.result(10)
    with pytest.raises(RuntimeError, match="was closed"):
        opened.encode_lists(QUERIES, [vectors, vectors])


def test_a_list_is_read_as_one_token_per_passage(resrank):
    vectors = resrank.encoder.encode_documents(DOCUMENTS)
    (usage,) = resrank.encode_lists(["cats"], [vectors]).usage
    asked = resrank.encoder.tokenizer.queries(["cats"])[0]
    assert usage.documents == 5
    assert usage.tokens == len(asked.ids) + 5


def test_permuting_candidates_permutes_their_scores(resrank):
    reranker, candidates = ResidualReranker(resrank), hits()
    before = scores(reranker.rerank(QUERIES[0], candidates))
    assert scores(reranker.rerank(QUERIES[0], candidates[::-1])) == pytest.approx(before, abs=1e-5)


def test_many_threads_and_tasks_get_their_own_answers(resrank):
    reranker, candidates = ResidualReranker(resrank), hits()
    queries = [f"{query} {i}" for i in range(12) for query in QUERIES]
    alone = [scores(reranker.rerank(query, candidates)) for query in queries]

    async def all_at_once():
        return await asyncio.gather(*(reranker.arerank(query, candidates) for query in queries))

    with ThreadPoolExecutor(6) as pool:
        threads = pool.map(lambda query: reranker.rerank(query, candidates), queries)
        for found, tasked, expected in zip(threads, asyncio.run(all_at_once()), alone, strict=True):
            assert scores(found) == pytest.approx(expected, abs=1e-5)
            assert scores(tasked) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("folder", "layout"),
    [
        ("tiny_bert", {}),
        ("tiny_bert", {"projection": "linear", "residual": "sum"}),
        ("tiny_xlmr", {"passage_positions": "ranked"}),
        ("tiny_qwen3", {"query_vector": "end"}),
    ],
)
def test_a_saved_folder_opens_with_the_same_scores(request, tmp_path, folder, layout):
    folder = request.getfixturevalue(folder)
    qwen3 = {"pooling": "last", "prompts": "e2rank"} if "qwen3" in folder.name else {}
    with make(folder, options=qwen3, **layout) as made:
        expected = scores(ResidualReranker(made).rerank(QUERIES[0], hits()))
        vectors = made.encoder.encode_documents(DOCUMENTS)
        made.save(tmp_path / "saved")
    with ResRank.from_pretrained(tmp_path / "saved") as opened:
        assert opened.recipe.layout == ResidualLayout(**layout)
        found = scores(ResidualReranker(opened).rerank(QUERIES[0], hits()))
        assert found == pytest.approx(expected, abs=1e-5)
    with Encoder.from_pretrained(tmp_path / "saved") as encoder:
        np.testing.assert_allclose(encoder.encode_documents(DOCUMENTS), vectors, atol=1e-6)
        assert encoder.name == str(tmp_path / "saved")


def test_closing_frees_both_models(tiny_bert, tmp_path):
    with make(tiny_bert) as made:
        made.save(tmp_path / "saved")
    before = loaded_models()
    opened = ResRank.from_pretrained(tmp_path / "saved")
    assert loaded_models() == before + 2
    opened.close()
    opened.close()
    assert loaded_models() == before
    with pytest.raises(RuntimeError, match="was closed"):
        opened.encode_lists(["cats"], [np.ones((2, 32), np.float32)])


@pytest.fixture
def saved(tiny_bert, tmp_path):
    with make(tiny_bert) as made:
        return made.save(tmp_path / "saved")


def test_an_encoder_of_other_weights_is_refused(saved):
    path = saved / "e2rank.json"
    stated = json.loads(path.read_text())
    stated["encoder"]["digest"] = "0" * 64
    path.write_text(json.dumps(stated))
    with pytest.raises(CheckpointError, match="trained on vectors of other weights"):
        ResRank.from_pretrained(saved)


def test_a_folder_that_holds_no_resrank_says_what_it_holds(tiny_bert, bert, tmp_path):
    with pytest.raises(CheckpointError, match=r"holds no ResRank: it has no e2rank.json"):
        ResRank.from_pretrained(tiny_bert)
    folder = bert.save(tmp_path / "encoder")
    with pytest.raises(CheckpointError, match="holds no ResRank: it says that it is 'e2rank'"):
        ResRank.from_pretrained(folder)


def test_a_damaged_head_is_an_error_that_frees_the_models(saved):
    (saved / HEAD_FILE).write_bytes(b"no tensors")
    before = loaded_models()
    with pytest.raises(CheckpointError, match=r"head\.safetensors cannot be read"):
        ResRank.from_pretrained(saved)
    assert loaded_models() == before


def test_a_list_that_the_positions_do_not_allow_is_refused_or_goes_in_windows(tiny_bert):
    with make(tiny_bert, passage_positions="ranked") as model:
        many = [Hit(Document(str(i), f"cats {i}"), 0.0) for i in range(130)]
        reason = r"130 passages and 3 tokens of text take 133 positions, .* has 128: .* windows"
        with pytest.raises(ValueError, match=reason):
            ResidualReranker(model).rerank("cats", many)
        ranking = ResidualReranker(model, window=Window(size=100, step=50)).rerank("cats", many)
        assert sorted(hit.document.id for hit in ranking) == sorted(str(i) for i in range(130))
        values = [hit.score for hit in ranking]
        assert values == sorted(values, reverse=True)


def test_a_query_of_any_length_is_cut_and_ranks(resrank):
    vectors = resrank.encoder.encode_documents(DOCUMENTS)
    found = resrank.encode_lists(["cats " * 300, "cats"], [vectors, vectors])
    assert [usage.query_cut for usage in found.usage] == [True, False]
    # 128 positions: one for all passages, one for a token that may close the input.
    assert found.usage[0].tokens == 126 + 5
    assert len(ResidualReranker(resrank).rerank("cats " * 300, hits())) == 5


def test_vectors_of_another_shape_are_refused_and_of_another_precision_are_not(resrank):
    vectors = resrank.encoder.encode_documents(DOCUMENTS)
    for wrong, reason in (
        ([vectors], r"2 queries came with 1 lists of vectors"),
        ([vectors, vectors[:, :16]], r"list 1 has the shape \(5, 16\), not \[k, 32\]"),
        ([vectors[0], vectors], r"list 0 has the shape \(32,\)"),
    ):
        with pytest.raises(ValueError, match=reason):
            resrank.encode_lists(QUERIES, wrong)
    expected = resrank.encode_lists(QUERIES, [vectors, vectors])
    found = resrank.encode_lists(QUERIES, [vectors.astype(np.float64), vectors])
    np.testing.assert_array_equal(found.passages[0], expected.passages[0])


def test_options_of_the_encoder_reach_it(resrank, tmp_path):
    folder = resrank.save(tmp_path / "saved")
    with load_reranker(folder, max_length=8) as reranker:
        assert reranker.encoder.recipe.document_tokens == 8
        assert len(reranker.rerank(QUERIES[0], hits())) == 5


def test_closing_lets_go_of_the_rerankers_weights(resrank, tmp_path):
    opened = ResRank.from_pretrained(resrank.save(tmp_path / "saved"))
    weights = weakref.ref(opened.lists.backbone.transformer)
    opened.close()
    gc.collect()
    assert weights() is None


def test_passages_at_one_position_may_be_any_number(resrank):
    many = [Hit(Document(str(i), f"cats {i}"), 0.0) for i in range(130)]
    assert len(ResidualReranker(resrank).rerank("cats", many)) == 130


def test_an_empty_list_of_vectors_is_an_error(resrank):
    vectors = resrank.encoder.encode_documents(DOCUMENTS)
    with pytest.raises(ValueError, match="list 1 has no passages"):
        resrank.encode_lists(QUERIES, [vectors, vectors[:0]])
    assert ResidualReranker(resrank).rerank_batch(QUERIES, [[], []]) == [[], []]


def test_vectors_that_are_not_finite_are_an_error(tiny_bert):
    with make(tiny_bert) as model:
        vectors = model.encoder.encode_documents(DOCUMENTS)
        vectors[1] = np.nan
        with pytest.raises(FloatingPointError, match="not finite"):
            model.encode_lists(["cats"], [vectors])
