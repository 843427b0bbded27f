"""The model is named with the text that it read, or not named at all."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from e2rank_rag.check.probe import Wish, compare
from e2rank_rag.models.encoder import Encoder
from tests.checking import CONTENTS, DOCUMENTS, sample_of, turned


def match_of(encoder, vectors, wish=None, fingerprint=None, documents=DOCUMENTS):
    tried = compare(encoder, sample_of(vectors, documents), wish or Wish(), fingerprint)
    return tried.match


def in_front(separator, *names, prefix=""):
    return [
        prefix + separator.join([*(str(d.meta[name]) for name in names), d.text]) for d in DOCUMENTS
    ]


def test_the_text_alone_is_found_with_the_models_own_length(bert):
    match = match_of(bert, bert.encode_documents(CONTENTS))
    assert (match.named, match.same) == (True, 8)
    assert (match.variant.fields, match.prefix) == ((), "")
    assert match.variant.tokens == bert.recipe.document_tokens
    assert match.recipe == bert.recipe


@pytest.mark.parametrize(
    ("separator", "names"), [("\n", ("title",)), (" - ", ("year",)), (". ", ("title", "year"))]
)
def test_fields_in_front_are_found_with_what_joins_them(bert, separator, names):
    match = match_of(bert, bert.encode_documents(in_front(separator, *names)))
    assert match.named
    assert match.variant.fields == names
    assert separator in match.separators


def test_white_space_that_a_model_does_not_see_cannot_be_told_apart(bert):
    match = match_of(bert, bert.encode_documents(in_front(" ", "title")))
    assert match.variant.separator == "\n"
    assert match.separators == ("\n", " ", "\n\n")


def test_a_changed_text_does_not_blur_what_joins_the_fields(minilm):
    many = [type(d)(f"{d.id}-{n}", f"{d.text} {n}", d.meta) for n in range(5) for d in DOCUMENTS]
    vectors = minilm.encode_documents([f"{d.meta['title']}. {d.text}" for d in many])
    vectors[[0, 20]] = minilm.encode_documents([f"{many[n].meta['title']} cats" for n in (0, 20)])
    match = match_of(minilm, vectors, documents=many)
    assert (match.named, match.same) == (True, 38)
    assert (match.variant.separator, match.separators) == (". ", (". ",))


@pytest.mark.parametrize("prefix", ["passage: ", "search_document: "])
def test_a_known_prefix_is_found(bert, prefix):
    match = match_of(bert, bert.encode_documents([prefix + text for text in CONTENTS]))
    assert (match.named, match.prefix, match.variant.fields) == (True, prefix, ())


def test_fields_prefix_and_length_are_found_together(bert, tiny_bert):
    texts = in_front(". ", "title", prefix="document: ")
    with Encoder.from_pretrained(tiny_bert, max_length=64) as encoder:
        match = match_of(bert, encoder.encode_documents(texts, on_cut=lambda cut: None))
    assert match.named
    assert (match.variant.fields, match.prefix, match.limits) == (("title",), "document: ", (64,))


def test_two_fields_behind_a_prefix_are_found(bert):
    match = match_of(bert, bert.encode_documents(in_front(": ", "year", "title", prefix="query: ")))
    assert (match.named, match.prefix, match.variant.fields) == (True, "query: ", ("year", "title"))


def test_lengths_that_no_text_reaches_cannot_be_told_apart(bert):
    short = DOCUMENTS[:3]
    vectors = bert.encode_documents([document.text for document in short])
    match = match_of(bert, vectors, documents=short)
    assert match.limits == (64, 128)
    assert match.variant.tokens == bert.recipe.document_tokens


def test_a_length_of_the_users_own_is_tried(bert, tiny_bert):
    with Encoder.from_pretrained(tiny_bert, max_length=50) as encoder:
        vectors = encoder.encode_documents(CONTENTS, on_cut=lambda cut: None)
        fingerprint = encoder.fingerprint
    assert not match_of(bert, vectors).named
    match = match_of(bert, vectors, Wish(tokens=50))
    assert (match.named, match.limits) == (True, (50,))
    short = DOCUMENTS[:1]
    recorded = match_of(bert, vectors[:1], Wish(tokens=50), fingerprint, documents=short)
    assert recorded.limits == (50, 64, 128)
    assert recorded.variant.tokens == 50


def test_vectors_of_any_length_and_of_fewer_dimensions_are_the_models(bert):
    vectors = bert.encode_documents(CONTENTS)
    assert match_of(bert, 7.0 * vectors).named
    match = match_of(bert, vectors[:, :16])
    assert (match.named, match.recipe.truncate_dim) == (True, 16)


def test_bfloat16_vectors_are_named(bert):
    vectors = torch.from_numpy(bert.encode_documents(CONTENTS)).to(torch.bfloat16).float().numpy()
    match = match_of(bert, vectors)
    assert match.named
    assert 0.999 < match.cosines.min() < 0.999999


def test_a_model_with_fewer_dimensions_is_not_compared(bert):
    tried = compare(bert, sample_of(np.ones((8, 64))), Wish(), None)
    assert tried.match is None
    assert tried.reason == "its vectors have 32 dimensions, the stored ones 64"


@pytest.mark.parametrize("which", ["random", "turned", "other model"])
def test_foreign_vectors_are_not_named(bert, qwen3, which):
    vectors = {
        "random": lambda: np.random.default_rng(1).normal(size=(8, 32)),
        "turned": lambda: turned(bert.encode_documents(CONTENTS)),
        "other model": lambda: qwen3.encode_documents(CONTENTS),
    }[which]()
    match = match_of(bert, vectors)
    assert not match.named
    assert match.same == 0


def test_some_changed_texts_of_many_leave_the_model_named_and_more_do_not(bert):
    many = [
        type(d)(f"{d.id}-{n}", f"{d.text} {n}", d.meta) for n in range(5) for d in DOCUMENTS[:4]
    ]
    vectors = bert.encode_documents([d.text for d in many])
    vectors[3] = turned(vectors)[3]
    match = match_of(bert, vectors, documents=many)
    assert (match.named, match.same) == (True, 19)
    vectors[4] = turned(vectors)[4]
    assert not match_of(bert, vectors, documents=many).named
