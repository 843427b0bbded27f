"""The loss of a batch is what its parts say, by loops over lists and pairs."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
import torch.nn.functional as F

from e2rank_rag.losses import ranknet_loss
from e2rank_rag.training.config import ListwiseConfig
from e2rank_rag.training.stages.listwise import listwise_loss

LISTS, DOCUMENTS, DIM = 3, 4, 8


def unit(*shape, seed):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


LISTWISE = unit(LISTS, DIM, seed=0)
QUERIES = unit(LISTS, DIM, seed=1)
VECTORS = unit(LISTS * DOCUMENTS, DIM, seed=2)
UNTRAINED = unit(LISTS, DIM, seed=4)
OTHERS = unit(LISTS, DIM, seed=5)
RELEVANCE = torch.tensor([[2.0, 1, 0, 0], [1, 0, 0, 0], [3, 2, 1, 0]])
LISTED = torch.tensor([[True] * 4, [True, True, True, False], [True] * 4])
POSITIVES = torch.tensor([0, 4, 8])
COUNTED = torch.ones(LISTS, LISTS * DOCUMENTS, dtype=torch.bool)
COUNTED[0, 5] = COUNTED[1, 7] = False


def configured(mode, **changes):
    lora = {"rank": 4} if mode == "adapter" else None
    settings = {
        "init_from": "m",
        "output": "o",
        "mode": mode,
        "lora": lora,
        "data": [{"path": "x"}],
    }
    return ListwiseConfig.model_validate({**settings, **changes})


def batch(mode):
    tokens = {
        "prompts": "prompts",
        "relevance": RELEVANCE,
        "listed": LISTED,
        "positives": POSITIVES,
        "counted": COUNTED,
    }
    if mode == "joint":
        return {**tokens, "queries": "queries", "documents": "documents"}
    vectors = VECTORS.view(LISTS, DOCUMENTS, DIM)
    return {**tokens, "query_vectors": QUERIES, "document_vectors": vectors}


def embed(tokens):
    vectors = {"prompts": LISTWISE, "queries": QUERIES, "documents": VECTORS, "others": OTHERS}
    return vectors[tokens]


def ranknet(better, temperature):
    means = []
    for row in range(LISTS):
        scores = [float(better[row] @ VECTORS[row * DOCUMENTS + i]) for i in range(DOCUMENTS)]
        places = [i for i in range(DOCUMENTS) if LISTED[row, i]]
        pairs = [
            math.log(1 + math.exp((scores[j] - scores[i]) / temperature))
            for i in places
            for j in places
            if RELEVANCE[row, i] > RELEVANCE[row, j]
        ]
        means.append(sum(pairs) / len(pairs))
    return sum(means) / LISTS


def info_nce(queries, temperature):
    losses = []
    for row in range(LISTS):
        exponentials = {
            place: math.exp(float(queries[row] @ VECTORS[place]) / temperature)
            for place in range(LISTS * DOCUMENTS)
            if COUNTED[row, place] or place == POSITIVES[row]
        }
        own = exponentials[int(POSITIVES[row])]
        losses.append(-math.log(own / sum(exponentials.values())))
    return sum(losses) / LISTS


@pytest.mark.parametrize("weight", [0.0, 0.4])
@pytest.mark.parametrize("mode", ["joint", "adapter"])
def test_the_loss_is_info_nce_and_twice_ranknet(mode, weight):
    better = F.normalize(weight * QUERIES + (1 - weight) * LISTWISE, dim=-1)
    # Plain queries are frozen in adapter mode, so there the vectors that rerank are compared.
    compared = QUERIES if mode == "joint" else better
    expected = {"info_nce": info_nce(compared, 0.03), "ranknet": ranknet(better, 0.1)}
    loss, parts = listwise_loss(embed, batch(mode), configured(mode), weight)
    assert {name: float(part) for name, part in parts.items()} == pytest.approx(expected, rel=1e-5)
    assert float(loss) == pytest.approx(expected["info_nce"] + 2 * expected["ranknet"], rel=1e-5)


def test_feedback_is_added_to_the_unit_vector_that_reranks():
    feedback = 0.4 * unit(LISTS, DIM, seed=3)
    blended = F.normalize(0.5 * QUERIES + 0.5 * LISTWISE, dim=-1)
    better = F.normalize(blended + feedback, dim=-1)
    _, parts = listwise_loss(
        embed, {**batch("adapter"), "feedback": feedback}, configured("adapter"), 0.5
    )
    expected = {"info_nce": info_nce(better, 0.03), "ranknet": ranknet(better, 0.1)}
    assert {name: float(part) for name, part in parts.items()} == pytest.approx(expected, rel=1e-5)


def test_ranknet_orders_the_final_scores_of_the_listed_documents():
    added = torch.randn(LISTS, DOCUMENTS, generator=torch.Generator().manual_seed(6))
    _, parts = listwise_loss(embed, {**batch("joint"), "added": added}, configured("joint"), 0.0)
    means = []
    for row in range(LISTS):
        places = [i for i in range(DOCUMENTS) if LISTED[row, i]]
        cosines = {i: float(LISTWISE[row] @ VECTORS[row * DOCUMENTS + i]) for i in places}
        deviation = statistics.pstdev(cosines.values())
        scores = {i: cosines[i] + deviation * float(added[row, i]) for i in places}
        pairs = [
            math.log(1 + math.exp((scores[j] - scores[i]) / 0.1))
            for i in places
            for j in places
            if RELEVANCE[row, i] > RELEVANCE[row, j]
        ]
        means.append(sum(pairs) / len(pairs))
    assert float(parts["ranknet"]) == pytest.approx(sum(means) / LISTS, rel=1e-5)
    assert float(parts["info_nce"]) == pytest.approx(info_nce(QUERIES, 0.03), rel=1e-5)


def test_the_deviation_of_the_cosines_has_no_gradient():
    """Cosine and deviation move together by a factor; only the cosine's gradient may count."""
    factor = torch.ones((), requires_grad=True)
    added = torch.randn(LISTS, DOCUMENTS, generator=torch.Generator().manual_seed(6))

    def scaled(tokens):
        return factor * embed(tokens) if tokens == "prompts" else embed(tokens)

    config = configured("joint", info_nce_weight=0.0)
    loss, _ = listwise_loss(scaled, {**batch("joint"), "added": added}, config, 0.0)
    loss.backward()
    vectors = VECTORS.view(LISTS, DOCUMENTS, DIM)
    cosines = (vectors @ LISTWISE[:, :, None]).squeeze(-1)
    deviations = torch.stack(
        [row[listed].std(correction=0) for row, listed in zip(cosines, LISTED, strict=True)]
    )
    other = torch.ones((), requires_grad=True)
    scores = other * cosines + deviations[:, None] * added
    (2 * ranknet_loss(scores / 0.1, RELEVANCE, LISTED)).backward()
    assert float(factor.grad) == pytest.approx(float(other.grad), rel=1e-4)


def test_weights_and_temperatures_are_those_of_the_configuration():
    config = configured(
        "joint",
        info_nce_weight=0.5,
        ranknet_weight=3.0,
        info_nce_temperature=0.2,
        ranknet_temperature=0.7,
    )
    loss, _ = listwise_loss(embed, batch("joint"), config, 0.0)
    expected = 0.5 * info_nce(QUERIES, 0.2) + 3.0 * ranknet(LISTWISE, 0.7)
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_the_anchor_is_the_distance_from_the_untrained_listwise_vectors():
    plain, _ = listwise_loss(embed, batch("adapter"), configured("adapter"), 0.5)
    loss, parts = listwise_loss(
        embed, batch("adapter"), configured("adapter", anchor=0.7), 0.5, lambda _: UNTRAINED
    )
    cosines = [float(LISTWISE[row] @ UNTRAINED[row]) for row in range(LISTS)]
    expected = 1 - sum(cosines) / LISTS
    assert float(parts["anchor"]) == pytest.approx(expected, rel=1e-5)
    assert float(loss) == pytest.approx(float(plain) + 0.7 * expected, rel=1e-5)


@pytest.mark.parametrize("mode", ["joint", "adapter"])
def test_the_counterfactual_is_what_another_querys_prompt_scores_too_high(mode):
    feedback = 0.4 * unit(LISTS, DIM, seed=3)
    given = {**batch(mode), "feedback": feedback}
    plain, _ = listwise_loss(embed, given, configured(mode), 0.5)
    config = configured(mode, counterfactual=0.3, margin=0.1)
    loss, parts = listwise_loss(embed, {**given, "others": "others"}, config, 0.5)
    missed = []
    for row in range(LISTS):
        positive = VECTORS[int(POSITIVES[row])]
        scores = [
            float(F.normalize(blended + feedback[row], dim=-1) @ positive)
            for blended in (
                F.normalize(0.5 * QUERIES[row] + 0.5 * listwise[row], dim=-1)
                for listwise in (LISTWISE, OTHERS)
            )
        ]
        missed.append(max(0.0, 0.1 - (scores[0] - scores[1])))
    assert 0 < missed.count(0.0) < LISTS
    expected = sum(missed) / LISTS
    assert float(parts["counterfactual"]) == pytest.approx(expected, rel=1e-4)
    assert float(loss) == pytest.approx(float(plain) + 0.3 * expected, rel=1e-5)
