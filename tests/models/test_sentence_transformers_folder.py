"""Folders of sentence-transformers, held against that library: the same vectors, or an error."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from e2rank_rag.errors import CheckpointError
from e2rank_rag.models.encoder import Encoder

sentence_transformers = pytest.importorskip("sentence_transformers")

TEXTS = [
    "cats purr",
    "Bread rises because yeast turns sugar into carbon dioxide; salt slows it down.",
    "Ferry FERRY ferry " * 40,
    "",
]

FILES = ["bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet"]


def read(path):
    return json.loads(path.read_text())


def write(path, content):
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))


def change(path, **values):
    write(path, {**(read(path) if path.exists() else {}), **values})


def length_in(name, content):
    """What the transformer's file says, under one of its names; another says otherwise."""

    def vary(folder):
        (folder / "sentence_bert_config.json").unlink()
        write(folder / f"sentence_{name}_config.json", content)
        if name != "xlnet":
            write(folder / "sentence_xlnet_config.json", {"max_seq_length": 9})

    return vary


def in_config(**values):
    return lambda folder: change(folder / "config_sentence_transformers.json", **values)


def in_transformer(**values):
    return lambda folder: change(folder / "sentence_bert_config.json", **values)


def in_tokenizer(**values):
    return lambda folder: change(folder / "tokenizer_config.json", **values)


def pooling(**values):
    return lambda folder: write(folder / "1_Pooling/config.json", values)


def in_a_subfolder(folder, name="0_Transformer"):
    part = folder / name
    part.mkdir()
    for path in list(folder.iterdir()):
        if path.is_file() and path.name not in (
            "modules.json",
            "config_sentence_transformers.json",
        ):
            path.rename(part / path.name)
    modules = read(folder / "modules.json")
    modules[0]["path"] = name
    write(folder / "modules.json", modules)


def beside_a_decoy(folder):
    """The folder itself holds a model too, of one layer and with other limits."""
    config = read(folder / "config.json")
    in_a_subfolder(folder)
    write(folder / "config.json", {**config, "num_hidden_layers": 1})
    write(folder / "sentence_bert_config.json", {"max_seq_length": 12})


def saved_again(folder):
    """As the installed version writes it."""
    model = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    model.max_seq_length = 24
    shutil.rmtree(folder)
    model.save(str(folder), create_model_card=False)


def all_of(*variants):
    def vary(folder):
        for each in variants:
            each(folder)

    return vary


PROMPTS = {"query": "cats: ", "document": "dogs: "}

SAME = {
    "as it was written for years": lambda folder: None,
    "as it is written now": saved_again,
    **{f"{name}, 32 tokens": length_in(name, {"max_seq_length": 32}) for name in FILES},
    "an empty file goes on to the next": all_of(
        lambda folder: write(folder / "sentence_bert_config.json", {}),
        lambda folder: write(folder / "sentence_roberta_config.json", {"max_seq_length": 20}),
    ),
    "no length": in_transformer(max_seq_length=None),
    "the tokenizer's length": all_of(
        in_transformer(max_seq_length=None), in_tokenizer(model_max_length=40)
    ),
    "longer than the tokenizer says": all_of(
        in_transformer(max_seq_length=100), in_tokenizer(model_max_length=40)
    ),
    "an argument's length": in_transformer(tokenizer_args={"model_max_length": 17}),
    "an argument's length by its new name": in_transformer(
        max_seq_length=90, processor_kwargs={"model_max_length": 17}
    ),
    "a transformer in a subfolder": in_a_subfolder,
    "a subfolder by another name": lambda folder: in_a_subfolder(folder, "transformer"),
    "a subfolder beside a decoy": beside_a_decoy,
    "a subfolder and an old name": all_of(
        length_in("distilbert", {"max_seq_length": 16}), in_a_subfolder
    ),
    "the first token": pooling(word_embedding_dimension=32, pooling_mode_cls_token=True),
    "the last token": pooling(word_embedding_dimension=32, pooling_mode_lasttoken=True),
    "no flag": pooling(word_embedding_dimension=32, pooling_mode_cls_token=False),
    "pooling by its new name": pooling(embedding_dimension=32, pooling_mode="cls"),
    "new name beside old flags": pooling(
        embedding_dimension=32, pooling_mode="cls", pooling_mode_mean_tokens=True
    ),
    "prompts": in_config(prompts=PROMPTS),
    "a prompt of queries": in_config(prompts={"query": "Instruct: find\nQuery:"}),
    "prompts that are none": in_config(prompts={"query": None, "document": ""}),
    "the default is that of documents": in_config(prompts=PROMPTS, default_prompt_name="document"),
    "a default of nothing": in_config(
        prompts={"query": "cats: ", "none": ""}, default_prompt_name="none"
    ),
    "no default": in_config(prompts=PROMPTS, default_prompt_name=None),
    "dot products": in_config(similarity_fn_name="dot"),
    "lower case by the tokenizer": in_transformer(do_lower_case=True),
    "another dtype": in_transformer(model_args={"torch_dtype": "float32"}),
}


@pytest.mark.parametrize("vary", SAME.values(), ids=SAME)
def test_the_layout_is_read_as_the_installed_sentence_transformers_reads_it(
    tiny_bert, tmp_path, vary
):
    folder = shutil.copytree(tiny_bert, tmp_path / "model")
    vary(folder)
    reference = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    with Encoder.from_pretrained(folder) as encoder:
        documents, queries = encoder.encode_documents(TEXTS), encoder.encode_queries(TEXTS[:3])
        saved = encoder.save(tmp_path / "saved")
    if not reference.prompts["document"] or reference.default_prompt_name is not None:
        np.testing.assert_allclose(documents, reference.encode(TEXTS), atol=1e-5)
    np.testing.assert_allclose(documents, reference.encode_document(TEXTS), atol=1e-5)
    np.testing.assert_allclose(queries, reference.encode_query(TEXTS[:3]), atol=1e-5)
    with Encoder.from_pretrained(saved) as again:
        np.testing.assert_array_equal(again.encode_documents(TEXTS), documents)


def custom_module(folder):
    modules = read(folder / "modules.json")
    modules[0]["type"] = "custom_st.Transformer"
    write(folder / "modules.json", modules)


def cased(folder):
    tokenizer = read(folder / "tokenizer.json")
    tokenizer["normalizer"]["lowercase"] = False
    write(folder / "tokenizer.json", tokenizer)
    change(folder / "tokenizer_config.json", do_lower_case=False)
    change(folder / "sentence_bert_config.json", do_lower_case=True)


REFUSED = {
    "texts as chats": (
        in_transformer(
            modality_config={
                "text": {"method": "forward", "method_output_name": "last_hidden_state"},
                "message": {"method": "forward", "method_output_name": "last_hidden_state"},
            },
        ),
        "modality_config",
    ),
    "another default": (
        in_config(prompts={"retrieval": "cats: "}, default_prompt_name="retrieval"),
        "default_prompt_name = 'retrieval'",
    ),
    "the default is that of queries": (
        in_config(prompts=PROMPTS, default_prompt_name="query"),
        "default_prompt_name = 'query'",
    ),
    "prompts of no text": (in_config(prompts={"query": 3}), "not strings"),
    "names in braces": (in_config(prompts={"query": "{query} "}), "name in braces"),
    "another kind of model": (in_config(model_type="SparseEncoder"), "a SparseEncoder"),
    "code of its own": (custom_module, "of its own"),
    "a module that reads tokens": (
        lambda folder: write(
            folder / "2_Normalize/config.json", {"module_input_name": "token_embeddings"}
        ),
        "module_input_name",
    ),
    "another task": (in_transformer(transformer_task="fill-mask"), "transformer_task"),
    "another output": (
        in_transformer(
            modality_config={"text": {"method": "forward", "method_output_name": "logits"}}
        ),
        "modality_config",
    ),
    "another tokenizer": (
        in_transformer(tokenizer_name_or_path="someone/tokenizer"),
        "tokenizer_name_or_path",
    ),
    "arguments of a model": (in_transformer(model_args={"subfolder": "x"}), "subfolder"),
    "arguments of a tokenizer": (
        in_transformer(tokenizer_args={"vocab_file": "/etc/passwd"}),
        "vocab_file",
    ),
    "arguments of a config": (in_transformer(config_args={"num_hidden_layers": 1}), "config_args"),
    "lengths by kind": (in_transformer(query_length=16), "query_length"),
    "a length that is none": (in_transformer(max_seq_length="long"), "no number of tokens"),
    "no object": (lambda folder: write(folder / "sentence_bert_config.json", [1]), "not an object"),
    "lower case before the tokenizer": (cased, "do_lower_case"),
    "pooling that is a number": (pooling(embedding_dimension=32, pooling_mode=3), "asks for"),
    "arguments that are a text": (in_transformer(model_args="float32"), "not an object"),
    "a default that is a list": (in_config(default_prompt_name=["query"]), "default_prompt_name"),
    "two poolings": (pooling(embedding_dimension=32, pooling_mode=["cls", "mean"]), "asks for"),
    "maxima": (pooling(word_embedding_dimension=32, pooling_mode_max_tokens=True), "asks for"),
}


@pytest.mark.parametrize(("vary", "reason"), REFUSED.values(), ids=REFUSED)
def test_a_layout_that_is_not_read_is_refused(tiny_bert, tmp_path, vary, reason):
    folder = shutil.copytree(tiny_bert, tmp_path / "model")
    vary(folder)
    with pytest.raises(CheckpointError, match=reason):
        Encoder.from_pretrained(folder)


def test_stated_prompts_stand_in_place_of_a_default_that_is_unclear(tiny_bert, tmp_path):
    folder = shutil.copytree(tiny_bert, tmp_path / "model")
    in_config(prompts={"retrieval": "cats: "}, default_prompt_name="retrieval")(folder)
    with (
        Encoder.from_pretrained(folder, prompts="plain") as encoder,
        Encoder.from_pretrained(tiny_bert) as plain,
    ):
        np.testing.assert_array_equal(
            encoder.encode_documents(TEXTS), plain.encode_documents(TEXTS)
        )


def test_leading_dimensions_are_kept_as_stated(tiny_bert, tmp_path):
    folder = shutil.copytree(tiny_bert, tmp_path / "model")
    in_config(truncate_dim=8)(folder)
    reference = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    expected = reference.encode(TEXTS)
    assert expected.shape == (4, 8)
    with Encoder.from_pretrained(folder) as encoder:
        found = encoder.encode_documents(TEXTS)
    np.testing.assert_allclose(
        found, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-5
    )
