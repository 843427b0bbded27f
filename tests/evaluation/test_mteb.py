"""Models in MTEB against our own evaluation, on local tasks; `make test-mteb`.

MTEB is in an extra that nothing else needs. Where it is not installed this is skipped.
"""

from __future__ import annotations

import json

import numpy as np
import pytest

mteb = pytest.importorskip("mteb", reason="MTEB is not installed: make test-mteb")

from datasets import Dataset  # noqa: E402
from mteb.abstasks.retrieval import AbsTaskRetrieval  # noqa: E402
from mteb.abstasks.task_metadata import TaskMetadata  # noqa: E402
from mteb.models import EncoderProtocol, SearchProtocol  # noqa: E402

from e2rank_rag.evaluation.mteb import (  # noqa: E402
    MtebEncoder,
    MtebReranker,
    falling_scores,
)
from e2rank_rag.evaluation.systems import Comparison  # noqa: E402
from e2rank_rag.models.encoder import Encoder  # noqa: E402
from e2rank_rag.rerankers import (  # noqa: E402
    EvidenceReranker,
    ListwiseReranker,
    RocchioReranker,
    load_reranker,
)
from e2rank_rag.types import Document, Hit  # noqa: E402
from e2rank_rag.words import Bm25  # noqa: E402
from tests.encoders import CountingEncoder  # noqa: E402
from tests.kit import filled_store  # noqa: E402

TEXTS = {
    "cats": ("Cats", "cats purr, cats sleep, cats purr again"),
    "dogs": ("", "dogs bark, dogs dig, dogs bark again"),
    "ferry": ("Ferries", "A ferry crosses the strait four times a day."),
    "bridge": ("", "The oldest bridge carries trams and bicycles."),
    "bread": ("Bread", "Bread rises because yeast turns sugar into carbon dioxide."),
    "salt": ("", "Salt slows the yeast down, and bread rises later."),
    "ice": ("", "Glaciers move downhill under their own weight."),
    "wind": ("", "In strong wind the ferry stays in the harbour."),
    "which animals purr": ("", "which animals purr"),
}
QUERIES = {
    "which animals purr": "which animals purr",  # a document, too
    "q2": "when does the ferry cross?",
    "q3": "why does bread rise?",
    "q4": "what moves downhill?",
}
QRELS = {
    "which animals purr": {"cats": 2, "dogs": 1},
    "q2": {"ferry": 2, "wind": 1, "bridge": 0},
    "q3": {"bread": 1, "salt": 1},
    "q4": {"ice": 1},
}
CANDIDATES = {id: list(TEXTS)[place:] + list(TEXTS)[:place] for place, id in enumerate(QUERIES)}
DOCUMENTS = [
    Document(id, f"{title} {text}".strip(), {"title": title} if title else {})
    for id, (title, text) in TEXTS.items()
]
MEASURES = {
    "nDCG@10": "ndcg_at_10",
    "RR@10": "mrr_at_10",
    "R@3": "recall_at_3",
    "AP@10": "map_at_10",
}


def task(kind, top_ranked=None):
    """A task of these texts, which is loaded without a network."""

    class Local(AbsTaskRetrieval):
        metadata = TaskMetadata(
            name=f"Local{kind}",
            description="A few documents.",
            reference=None,
            dataset={"path": "none", "revision": "1"},
            type=kind,
            category="t2t",
            modalities=["text"],
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            main_score="ndcg_at_10",
            date=None,
            domains=None,
            task_subtypes=None,
            license=None,
            annotations_creators=None,
            dialect=None,
            sample_creation=None,
            bibtex_citation="",
        )
        ignore_identical_ids = True

        def load_data(self, **_):
            rows = [{"id": i, "title": title, "text": text} for i, (title, text) in TEXTS.items()]
            queries = [{"id": id, "text": text} for id, text in QUERIES.items()]
            self.dataset = {
                "default": {
                    "test": {
                        "corpus": Dataset.from_list(rows),
                        "queries": Dataset.from_list(queries),
                        "relevant_docs": {id: dict(grades) for id, grades in QRELS.items()},
                        "top_ranked": top_ranked,
                    }
                }
            }
            self.data_loaded = True

    return Local()


RETRIEVAL = {"kind": "Retrieval"}
RERANKING = {"kind": "Reranking", "top_ranked": CANDIDATES}


def figures(model, **given):
    """What MTEB says of a model: our names of measures, and the whole result as it is written."""
    local = task(**given)
    result = mteb.evaluate(model, local, cache=None, show_progress_bar=False)
    (scores,) = result.task_results[0].scores["test"]
    return {ours: scores[theirs] for ours, theirs in MEASURES.items()}, result


def ours(encoder, method, **options):
    """The same by our own evaluation."""
    store = filled_store(encoder, DOCUMENTS, bm25=options.pop("bm25", None))
    comparison = Comparison(encoder, store, QUERIES, QRELS, measures=list(MEASURES), **options)
    result = comparison.run(method)
    store.close()
    return result.measures


def alike(one, other):
    assert one == pytest.approx(other, abs=1e-4)
    assert 0.0 < one["nDCG@10"] < 1.0


def test_the_interfaces_are_mtebs(bert):
    encoder, search = MtebEncoder(bert), MtebReranker(ListwiseReranker(bert))
    assert isinstance(encoder, EncoderProtocol)
    assert not isinstance(encoder, SearchProtocol)
    assert isinstance(search, SearchProtocol)
    assert not isinstance(search, EncoderProtocol)


def test_an_encoder_gets_the_query_prompt_for_queries_only(qwen3):
    counting = CountingEncoder(qwen3)
    model = MtebEncoder(qwen3)
    model.encoder = counting
    kinds = mteb.types.PromptType
    batches = [{"text": ["cats purr"]}, {"text": ["dogs bark"]}]
    asked = model.encode(batches, prompt_type=kinds.query, batch_size=1)
    plain = model.encode(batches, prompt_type=kinds.document)
    alone = model.encode(batches)
    texts = ["cats purr", "dogs bark"]
    assert (counting.queries, counting.documents) == (texts, texts * 2)
    np.testing.assert_array_equal(asked, qwen3.encode_queries(texts))
    np.testing.assert_array_equal(plain, alone)
    cosines = model.similarity(asked, plain).numpy()
    np.testing.assert_allclose(cosines, asked @ plain.T, atol=1e-6)
    np.testing.assert_allclose(model.similarity(asked[0], plain).numpy(), cosines[:1], atol=1e-6)
    pairs = model.similarity_pairwise(asked, plain).numpy()
    np.testing.assert_allclose(pairs, cosines.diagonal(), atol=1e-6)


@pytest.mark.parametrize("given", [RETRIEVAL, RERANKING], ids=["retrieval", "reranking"])
def test_mteb_measures_an_encoder_as_our_evaluation_does(bert, given):
    found, _ = figures(MtebEncoder(bert), **given)
    alike(found, ours(bert, "retrieve"))


@pytest.mark.parametrize("given", [RETRIEVAL, RERANKING], ids=["retrieval", "reranking"])
@pytest.mark.parametrize("method", ["listwise", "evidence", "rocchio"])
def test_mteb_measures_a_reranker_as_our_evaluation_does(bert, method, given):
    kinds = {
        "listwise": ListwiseReranker,
        "evidence": EvidenceReranker,
        "rocchio": RocchioReranker,
    }
    options = {"candidates": CANDIDATES} if "top_ranked" in given else {}
    found, _ = figures(MtebReranker(kinds[method](bert)), **given)
    alike(found, ours(bert, method, **options))


def test_candidates_may_come_from_a_hybrid_search_and_be_few(bert):
    model = MtebReranker(ListwiseReranker(bert), retrieve_k=4, bm25=Bm25(language="english"))
    found, _ = figures(model, **RETRIEVAL)
    alike(found, ours(bert, "listwise", bm25=Bm25(language="english"), retrieve_k=4))


def test_a_task_that_an_encoder_made_candidates_for_has_them_reranked(bert, tmp_path):
    """MTEB's two stages: its predictions of one model, which another one reranks."""
    local = task("Retrieval")
    mteb.evaluate(
        MtebEncoder(bert), local, cache=None, show_progress_bar=False, prediction_folder=tmp_path
    )
    two = local.convert_to_reranking(tmp_path, top_k=4)
    model = MtebReranker(ListwiseReranker(bert))
    result = mteb.evaluate(model, two, cache=None, show_progress_bar=False)
    (scores,) = result.task_results[0].scores["test"]
    nearest = ours(bert, "listwise", retrieve_k=4)
    assert scores["ndcg_at_10"] == pytest.approx(nearest["nDCG@10"], abs=1e-4)


def test_a_cross_encoder_and_a_resrank_rerank_too(bert, tiny_bert, tiny_rankt5, tiny_resrank):
    with load_reranker(tiny_rankt5, device="cpu") as pairs:
        with pytest.raises(ValueError, match="give an encoder too"):
            MtebReranker(pairs)
        model = MtebReranker(pairs, bert)
        assert model.mteb_model_meta.is_cross_encoder
        assert model.mteb_model_meta.name == f"local/{tiny_rankt5.name}"
        found, _ = figures(model, **RETRIEVAL)
        alike(found, ours(bert, "rerank", reranker=pairs))
    with load_reranker(tiny_resrank, device="cpu") as residual:
        found, _ = figures(MtebReranker(residual), **RERANKING)
        alike(found, ours(residual.encoder, "rerank", reranker=residual, candidates=CANDIDATES))


def test_results_have_mtebs_format_and_name_the_model_and_its_settings(bert, tmp_path):
    model = MtebReranker(ListwiseReranker(bert, prompt_depth=3), retrieve_k=50)
    _, result = figures(model, **RETRIEVAL)
    (written,) = result.task_results
    written.to_disk(tmp_path / "result.json")
    data = json.loads((tmp_path / "result.json").read_text())
    assert data["task_name"] == "LocalRetrieval"
    (scores,) = data["scores"]["test"]
    assert scores["main_score"] == scores["ndcg_at_10"]
    meta = model.mteb_model_meta
    assert meta.experiment_kwargs == {
        "reranker": "ListwiseReranker",
        "retrieve_k": 50,
        "hybrid": False,
        "prompt_depth": 3,
        "passes": 1,
    }
    assert (meta.embed_dim, meta.max_tokens) == (bert.dim, bert.recipe.document_tokens)
    assert str(tmp_path.parent) not in json.dumps(meta.to_dict())


def test_the_revision_changes_with_weights_recipe_and_adapter(bert, minilm):
    encoders = [bert, minilm]
    recipe = minilm.recipe.model_copy(update={"query_tokens": 17})
    with minilm.with_recipe(recipe) as shorter, Encoder.from_pretrained("e2rank-minilm") as adapted:
        bare = adapted.without_adapter()
        revisions = [
            MtebEncoder(each).mteb_model_meta.revision
            for each in (*encoders, shorter, adapted, bare)
        ]
        assert MtebEncoder(adapted).mteb_model_meta.name == "e2rank-rag/e2rank-minilm"
        bare.close()
    assert len(set(revisions)) == len(revisions)
    assert MtebEncoder(bert).mteb_model_meta.revision == revisions[0]


def test_equal_scores_keep_the_order_of_the_ranking():
    values = dict(zip("abcd", (0.5, 0.5, 0.5, -1), strict=True))
    scores = falling_scores([Hit(Document(id, id), score) for id, score in values.items()])
    narrow = np.array(list(scores.values()), dtype=np.float32)
    assert (np.diff(narrow) < 0).all()
    np.testing.assert_allclose(narrow, [0.5, 0.5, 0.5, -1], atol=1e-6)


def test_wrong_numbers_and_a_search_before_the_index_are_errors(bert):
    with pytest.raises(ValueError, match="retrieve_k must be 1 or more, got 0"):
        MtebReranker(ListwiseReranker(bert), retrieve_k=0)
    with pytest.raises(ValueError, match="call index before search"):
        MtebReranker(ListwiseReranker(bert)).search({"id": []}, task_metadata=None, top_k=1)


def test_an_index_in_a_folder_is_used_again(bert, tmp_path):
    counting = CountingEncoder(bert)
    first, _ = figures(MtebReranker(ListwiseReranker(bert), location=tmp_path), **RETRIEVAL)
    model = MtebReranker(ListwiseReranker(bert), location=tmp_path)
    model.encoder = counting
    again, _ = figures(model, **RETRIEVAL)
    model.close()
    assert again == first
    assert counting.documents == []
