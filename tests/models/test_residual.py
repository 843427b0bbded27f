"""One place per passage, one vector per place, and a residual: against arithmetic by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModel

from e2rank_rag.evidence import CandidateWords
from e2rank_rag.feedback import Feedback
from e2rank_rag.list_tokenization import collate_lists, list_tokens
from e2rank_rag.models.residual import ListBackbone, ResidualHead, token_length
from e2rank_rag.recipe import ResidualLayout
from e2rank_rag.tokenization import Tokens
from e2rank_rag.words import Bm25

QUERY = Tokens(ids=[2, 11, 12, 3], slots=[1, 1, 1, 1], cut=False)
DIM = 32
LISTED = torch.ones(2, 3, dtype=torch.bool)


def vectors(*shape):
    drawn = torch.randn(*shape, DIM, generator=torch.Generator().manual_seed(sum(shape)))
    return F.normalize(drawn, dim=-1)


def ranker(folder, **layout):
    torch.manual_seed(0)
    transformer = AutoModel.from_pretrained(folder).eval()
    head = ResidualHead(DIM, DIM, ResidualLayout(**layout), scale=1.5, gates=(0.7, 0.4))
    return ListBackbone(transformer, head).eval()


def ranked(model, passages, *, query=QUERY, closing=(3,)):
    """Vectors of one query over passages [K, D], without padding."""
    tokens = list_tokens(query, len(passages), model.head.layout, closing=closing)
    with torch.no_grad():
        better, contextual = model(vectors(1), passages[None], **collate_lists([tokens], pad_id=0))
    return better[0], contextual[0]


def test_passages_are_input_embeddings_and_hidden_states_are_added_to_them(tiny_bert):
    model, passages = ranker(tiny_bert, query_residual="query"), vectors(3)
    better, contextual = ranked(model, passages)
    words = model.transformer.embeddings.word_embeddings(torch.tensor(QUERY.ids))
    with torch.no_grad():
        hidden = model.transformer(
            inputs_embeds=torch.cat([words, 1.5 * passages])[None],
            position_ids=torch.tensor([[0, 1, 2, 3, 4, 4, 4]]),
            token_type_ids=torch.tensor([[0, 0, 0, 0, 1, 1, 1]]),
        ).last_hidden_state[0]
    query = vectors(1)[0] + 0.7 * F.normalize(hidden[:4].mean(0), dim=0)
    added = passages + 0.4 * F.normalize(hidden[4:], dim=1)
    torch.testing.assert_close(better, F.normalize(query, dim=0), atol=1e-5, rtol=0)
    torch.testing.assert_close(contextual, F.normalize(added, dim=1), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        ({"residual": "gated"}, lambda e, h: e + 0.4 * F.normalize(h, dim=-1)),
        ({"residual": "gated", "unit_hidden": False}, lambda e, h: e + 0.4 * h),
        ({"residual": "sum"}, lambda e, h: e + F.normalize(h, dim=-1)),
        ({"residual": "sum", "unit_hidden": False}, lambda e, h: e + h),
        ({"residual": "none"}, lambda e, h: h),
    ],
)
def test_the_residual_is_what_the_layout_says(layout, expected):
    head = ResidualHead(DIM, DIM, ResidualLayout(**layout), gates=(0.7, 0.4))
    passages, states = vectors(2, 3), 2.0 * vectors(2, 4)
    _, contextual = head.add(vectors(2), passages, states, LISTED)
    torch.testing.assert_close(contextual, F.normalize(expected(passages, states[:, 1:]), dim=-1))


def test_the_query_may_leave_the_vector_of_the_encoder_out():
    head = ResidualHead(DIM, DIM, ResidualLayout(query_residual="none"), gates=(0.7, 0.4))
    states = vectors(2, 4)
    better, _ = head.add(vectors(2), vectors(2, 3), states, LISTED)
    torch.testing.assert_close(better, states[:, 0])


def test_the_query_may_begin_from_feedback_which_is_that_of_e2rank_without_words():
    head = ResidualHead(
        DIM, DIM, ResidualLayout(query_residual="feedback"), gates=(0.0, 0.0), feedback=(0.3, 2.0)
    )
    asked, passages = vectors(2), vectors(2, 3)
    listed = torch.tensor([[True, True, True], [True, True, False]])
    better, _ = head.add(asked, passages, vectors(2, 4), listed)
    feedback = Feedback(lexical_weight=0.0, temperature=1 / 2.0, weight=0.3)
    for row, count in enumerate((3, 2)):
        query, those = asked[row].numpy(), passages[row, :count].numpy()
        evidence = feedback.evidence(CandidateWords.of("", [""] * count, Bm25()), those @ query)
        expected = query + feedback.weight * feedback.mean(those, evidence)
        torch.testing.assert_close(
            better[row].detach(), F.normalize(torch.from_numpy(expected), dim=0)
        )


@pytest.mark.parametrize(
    "layout",
    [
        {},
        {"query_residual": "query"},
        {"residual": "sum", "query_residual": "none"},
        {"residual": "none"},
        {"projection": "none", "unit_hidden": False},
    ],
)
def test_a_head_has_no_weights_that_its_layout_does_not_read(layout):
    head = ResidualHead(DIM, DIM, ResidualLayout(**layout))
    states = head.inputs(vectors(2, 4))
    better, contextual = head.add(vectors(2), vectors(2, 3), states, LISTED)
    torch.einsum("bd,bkd->bk", better, contextual).square().sum().backward()
    idle = [n for n, p in head.named_parameters() if p.requires_grad and p.grad is None]
    assert idle == []


@pytest.mark.parametrize("layout", [{}, {"residual": "sum"}, {"passage_attention": "own"}])
def test_without_the_residual_scores_are_others(tiny_bert, layout):
    passages = vectors(4)

    def scores(**layout):
        better, contextual = ranked(ranker(tiny_bert, **layout), passages)
        return contextual @ better

    bare = scores(**{**layout, "residual": "none"})
    assert not torch.allclose(scores(**layout), bare, atol=1e-2)


@pytest.mark.parametrize(
    ("folder", "layout"),
    [
        ("tiny_bert", {}),
        ("tiny_bert", {"passage_attention": "own"}),
        ("tiny_xlmr", {"query_position": "after"}),
        # Even a causal model cannot tell the order of passages that do not see each other.
        ("tiny_qwen3", {"passage_attention": "own", "query_vector": "end"}),
    ],
)
def test_permuting_passages_at_one_position_permutes_their_scores(request, folder, layout):
    model, passages = ranker(request.getfixturevalue(folder), **layout), vectors(9)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(3))
    better, contextual = ranked(model, passages)
    again, permuted = ranked(model, passages[order])
    torch.testing.assert_close(again, better, atol=1e-5, rtol=0)
    torch.testing.assert_close(permuted @ again, (contextual @ better)[order], atol=1e-5, rtol=0)


@pytest.mark.parametrize("folder", ["tiny_bert", "tiny_qwen3"])
def test_passages_do_not_see_each_other_whatever_computes_attention(request, folder):
    options = {"passage_attention": "own", "query_vector": "end"}
    model, passages = ranker(request.getfixturevalue(folder), **options), vectors(4)
    expected = ranked(model, passages)
    model.transformer.set_attn_implementation("eager")
    for one, other in zip(ranked(model, passages), expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("folder", "layout"),
    [
        ("tiny_bert", {"passage_positions": "ranked"}),
        ("tiny_qwen3", {"query_vector": "end"}),
    ],
)
def test_places_of_their_own_and_causal_attention_let_the_order_count(request, folder, layout):
    model, passages = ranker(request.getfixturevalue(folder), **layout), vectors(9)
    better, contextual = ranked(model, passages)
    again, permuted = ranked(model, passages.flip(0))
    assert not torch.allclose((permuted @ again).flip(0), contextual @ better, atol=1e-3)


@pytest.mark.parametrize("position", ["before", "after"])
def test_a_causal_passage_sees_the_query_only_where_it_stands_before(tiny_qwen3, position):
    model, passages = ranker(tiny_qwen3, query_position=position, query_vector="end"), vectors(3)
    other = QUERY._replace(ids=[2, 21, 22, 3])
    _, contextual = ranked(model, passages)
    _, changed = ranked(model, passages, query=other)
    assert torch.allclose(contextual, changed, atol=1e-6) is (position == "after")


def test_the_end_of_a_causal_input_has_seen_the_list_and_the_span_of_the_query_has_not(tiny_qwen3):
    for vector, seen in (("end", True), ("span", False)):
        model = ranker(tiny_qwen3, query_vector=vector, query_residual="query")
        last = QUERY._replace(slots=[0, 0, 0, 1])
        better, _ = ranked(model, vectors(3), query=last)
        changed, _ = ranked(model, vectors(3).flip(1), query=last)
        assert torch.allclose(better, changed, atol=1e-6) is not seen


@pytest.mark.parametrize("folder", ["tiny_bert", "tiny_qwen3", "tiny_xlmr"])
@pytest.mark.parametrize("layout", [{}, {"passage_attention": "own"}, {"query_vector": "end"}])
def test_a_list_has_the_same_vectors_alone_and_beside_a_longer_one(request, folder, layout):
    model = ranker(request.getfixturevalue(folder), **layout)
    lists = [vectors(5), vectors(2)]
    tokens = [list_tokens(QUERY, len(part), model.head.layout, closing=(3,)) for part in lists]
    padded = torch.nn.utils.rnn.pad_sequence(lists, batch_first=True)
    with torch.no_grad():
        better, contextual = model(
            vectors(1).repeat(2, 1), padded, **collate_lists(tokens, pad_id=0)
        )
    for row, passages in enumerate(lists):
        query, alone = ranked(model, passages)
        torch.testing.assert_close(better[row], query, atol=1e-5, rtol=0)
        torch.testing.assert_close(contextual[row, : len(passages)], alone, atol=1e-5, rtol=0)


def test_passages_that_see_only_themselves_do_not_change_each_other(tiny_bert):
    model, passages = ranker(tiny_bert, passage_attention="own"), vectors(4)
    other = torch.cat([passages[:1], -passages[1:]])
    # One layer deep: in a deeper one, the query's tokens carry what they have seen of the others.
    model.transformer.encoder.layer = model.transformer.encoder.layer[:1]
    torch.testing.assert_close(ranked(model, other)[1][0], ranked(model, passages)[1][0])


def test_other_widths_need_a_projection():
    with pytest.raises(ValueError, match=r'32 dimensions.*64.*layout\.projection to "linear"'):
        ResidualHead(32, 64, ResidualLayout(projection="none"))
    head = ResidualHead(32, 64, ResidualLayout())
    assert head.inputs(vectors(2, 3)).shape == (2, 3, 64)
    better, contextual = head.add(vectors(2), vectors(2, 3), torch.randn(2, 4, 64), LISTED)
    assert better.shape == (2, 32)
    assert contextual.shape == (2, 3, 32)


def test_gates_learn_only_where_they_are_used():
    for residual, learned in (("gated", True), ("sum", False), ("none", False)):
        head = ResidualHead(DIM, DIM, ResidualLayout(residual=residual))
        assert head.gates.requires_grad is learned


def test_a_vector_passes_for_a_token_of_mean_length(tiny_bert):
    transformer = AutoModel.from_pretrained(tiny_bert)
    weights = transformer.embeddings.word_embeddings.weight.detach()
    assert token_length(transformer) == pytest.approx(float(weights.pow(2).sum(1).sqrt().mean()))
