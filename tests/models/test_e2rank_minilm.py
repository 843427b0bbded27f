"""The model that ships: all-MiniLM-L6-v2's own vectors, and a listwise adapter beside them."""

from __future__ import annotations

import hashlib
import json
import re
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import numpy as np
import pytest

from e2rank_rag.data import shipped_collection
from e2rank_rag.models.encoder import Encoder
from e2rank_rag.models.shipped import ADAPTED_FOLDER, DEFAULT_MODEL, SHA256, minilm_folder

CLAIMS = list(shipped_collection("scifact").queries("test").values())
ABSTRACTS = [document.text for document in islice(shipped_collection().documents(), 60)]


@pytest.fixture(scope="module")
def shipped():
    with Encoder.from_pretrained(DEFAULT_MODEL) as encoder:
        yield encoder


def test_documents_and_queries_have_the_vectors_of_the_base(shipped, minilm):
    assert shipped.fingerprint == minilm.fingerprint
    for encode in ("encode_documents", "encode_queries"):
        ours, base = (getattr(model, encode)(CLAIMS[:10]) for model in (shipped, minilm))
        np.testing.assert_allclose(ours, base, atol=1e-6)


def test_a_prompt_goes_through_the_adapter(shipped, minilm):
    ours, base = (
        model.encode_listwise(CLAIMS[:2], [ABSTRACTS] * 2, query_weight=0.0).embeddings
        for model in (shipped, minilm)
    )
    assert (ours * base).sum(1).max() < 0.99


def test_opening_it_leaves_the_file_of_the_base_as_it_was(shipped):
    weights = (minilm_folder() / "model.safetensors").read_bytes()
    assert hashlib.sha256(weights).hexdigest() == SHA256["model.safetensors"]


def test_it_adds_less_than_ten_megabytes_to_the_package():
    sizes = [path.stat().st_size for path in ADAPTED_FOLDER.rglob("*") if path.is_file()]
    assert sum(sizes) < 10_000_000


def test_saved_it_is_a_folder_of_its_own(shipped, tmp_path):
    with Encoder.from_pretrained(shipped.save(tmp_path / "copy")) as copy:
        assert copy.fingerprint == shipped.fingerprint
        assert copy.feedback == shipped.feedback
        ours, copied = (
            model.encode_listwise(CLAIMS[:2], [ABSTRACTS] * 2).embeddings
            for model in (shipped, copy)
        )
        np.testing.assert_allclose(copied, ours, atol=1e-6)


def test_its_card_has_the_settings_of_its_recipe():
    card = (ADAPTED_FOLDER / "MODEL_CARD.md").read_text(encoding="utf-8")
    recipe = json.loads((ADAPTED_FOLDER / "e2rank.json").read_text(encoding="utf-8"))
    for name, value in (
        ("query_weight", recipe["query_weight"]),
        *recipe["feedback"].items(),
    ):
        assert re.search(rf"`{name}` {re.escape(f'{value:g}')}\b", card), name


@pytest.mark.slow
def test_documents_and_lists_from_two_threads_are_each_right_a_thousand_times(shipped):
    documents = [ABSTRACTS[i % len(ABSTRACTS)][: 40 + i] for i in range(1000)]
    lists = [
        (CLAIMS[i % len(CLAIMS)], [text[: 40 + i] for text in ABSTRACTS[:3]]) for i in range(1000)
    ]
    alone = shipped.encode_documents(documents)
    prompts = shipped.encode_listwise(*zip(*lists, strict=True)).embeddings
    with ThreadPoolExecutor(2) as threads:
        one = threads.submit(lambda: [shipped.encode_documents([text])[0] for text in documents])
        other = threads.submit(
            lambda: [shipped.encode_listwise([q], [texts]).embeddings[0] for q, texts in lists]
        )
        np.testing.assert_allclose(np.stack(one.result()), alone, atol=1e-5)
        np.testing.assert_allclose(np.stack(other.result()), prompts, atol=1e-5)
