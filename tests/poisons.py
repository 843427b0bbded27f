"""Changes to a model folder that must be refused, by what they ask for: see `models.test_files`.

Each takes the folder, and another one outside it that nothing may read.
"""

from __future__ import annotations

import json
import os

import torch
from safetensors.torch import load_file, save_file


def change(path, **values):
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**content, **values}))


def in_config(**values):
    return lambda folder, outside: change(folder / "config.json", **values)


def in_recipe(**values):
    said = {"pooling": "mean", "prompts": {}, "query_tokens": 64, "document_tokens": 64}
    said["listwise"] = {"max_tokens": 64}
    return lambda folder, outside: change(folder / "e2rank.json", **{**said, **values})


def in_tokenizer_config(**values):
    return lambda folder, outside: change(folder / "tokenizer_config.json", **values)


def in_tokenizer(**values):
    return lambda folder, outside: change(folder / "tokenizer.json", **values)


def in_model_of_tokenizer(**values):
    def poison(folder, outside):
        model = json.loads((folder / "tokenizer.json").read_text())["model"]
        change(folder / "tokenizer.json", model={**model, **values})

    return poison


def sharded(name):
    """An index that names a shard elsewhere, beside a decoy."""

    def poison(folder, outside):
        shard = name.format(outside=outside, up=os.path.relpath(outside, folder))
        weights = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").rename(folder / "decoy.safetensors")
        torch.save(weights, folder / "pytorch_model.bin")
        content = {"metadata": {}, "weight_map": dict.fromkeys(weights, shard)}
        (folder / "model.safetensors.index.json").write_text(json.dumps(content))

    return poison


def only_pickles(folder, outside):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(folder / "decoy.safetensors")
    torch.save(weights, folder / "pytorch_model.bin")


def linked(name):
    def poison(folder, outside):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(outside / name)

    return poison


def fewer_layers(folder, outside):
    change(folder / "config.json", num_hidden_layers=1)


def another_tensor(folder, outside):
    weights = load_file(folder / "model.safetensors")
    weights["encoder.layer.0.attention.gate.weight"] = torch.ones(32, 32)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def another_tokenizer(folder, outside):
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["vocab"]["zebra"] = 100_000
    (folder / "tokenizer.json").write_text(json.dumps(content))


def special_beyond(folder, outside):
    content = json.loads((folder / "tokenizer.json").read_text())
    content["post_processor"]["special_tokens"]["[CLS]"]["ids"] = [4_000_000]
    (folder / "tokenizer.json").write_text(json.dumps(content))


def unknown_frame(folder, outside):
    content = json.loads((folder / "tokenizer.json").read_text())
    content["post_processor"]["single"][0]["SpecialToken"]["id"] = "nowhere"
    (folder / "tokenizer.json").write_text(json.dumps(content))


def no_text_in_the_frame(folder, outside):
    content = json.loads((folder / "tokenizer.json").read_text())
    single = content["post_processor"]["single"]
    content["post_processor"]["single"] = [each for each in single if "Sequence" not in each]
    (folder / "tokenizer.json").write_text(json.dumps(content))


def long_frame(folder, outside):
    content = json.loads((folder / "tokenizer.json").read_text())
    content["post_processor"]["single"][:0] = content["post_processor"]["single"][:1] * 100_000
    (folder / "tokenizer.json").write_text(json.dumps(content))


def text_twice(folder, outside):
    content = json.loads((folder / "tokenizer.json").read_text())
    single = content["post_processor"]["single"]
    single += [each for each in single if "Sequence" in each]
    (folder / "tokenizer.json").write_text(json.dumps(content))


def no_tokenizer(folder, outside):
    (folder / "tokenizer.json").unlink()
    change(folder / "tokenizer_config.json", tokenizer_class="ProcessorMixin")


def in_eight_bits(folder, outside):
    weights = load_file(folder / "model.safetensors")
    name = "encoder.layer.0.output.dense.weight"
    weights[name] = (weights[name] * 100).to(torch.int8)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def many_tensors(folder, outside):
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    header = json.dumps({f"t{number}": empty for number in range(100_000)}).encode()
    content = len(header).to_bytes(8, "little") + header
    (folder / "model.safetensors").write_bytes(content)


def deep(name):
    def poison(folder, outside):
        (folder / name).write_text('{"a":' * 100_000 + "1" + "}" * 100_000)

    return poison


def huge(name):
    def poison(folder, outside):
        with (folder / name).open("wb") as file:
            file.truncate(300 << 20)

    return poison


def peft_beside(folder, outside):
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": str(outside)})
    )


def modules_outside(folder, outside):
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["path"] = os.path.relpath(outside, folder)
    (folder / "modules.json").write_text(json.dumps(modules))


def regex(pattern):
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"}
    return in_tokenizer(pre_tokenizer={**split, "invert": False})


def normalizers(*steps):
    return in_tokenizer(normalizer={"type": "Sequence", "normalizers": list(steps)})


PLAIN_TOKEN = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
DOUBLE = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
BETWEEN = {"type": "Replace", "pattern": {"Regex": "x*"}, "content": "abc"}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}

POISONS = {
    "another weights file": in_config(transformers_weights="decoy.safetensors"),
    "quantisation": in_config(quantization_config={"quant_method": "bitsandbytes"}),
    "a kernel of the hub": in_config(_attn_implementation="someone/kernel"),
    "a kernel by another name": in_config(attn_implementation="someone/kernel:flash"),
    "an internal name of it": in_config(_attn_implementation_internal="flash_attention_2"),
    "a backbone": in_config(model_type="detr", backbone="someone/backbone"),
    "a model of parts": in_config(model_type="encoder-decoder"),
    "images": in_config(model_type="vit"),
    "200,000 layers": in_config(num_hidden_layers=200_000),
    "9,999 layers": in_config(num_hidden_layers=9_999),
    "labels": in_config(num_labels=2_000_000_000),
    "width": in_config(hidden_size=4_000_000, intermediate_size=4_000_000),
    "positions": in_config(max_position_embeddings=2_000_000_000),
    "vocabulary": in_config(vocab_size=2_000_000_000),
    "no number": in_config(hidden_size="32"),
    "less than nothing": in_config(num_attention_heads=-1),
    "no name of an architecture": in_config(model_type=["bert"]),
    "no positions": in_config(max_position_embeddings=10),
    "a length of words": in_tokenizer_config(model_max_length="long"),
    "a length of nothing": lambda folder, outside: change(
        folder / "sentence_bert_config.json", max_seq_length=True
    ),
    "no unknown token": in_model_of_tokenizer(vocab={}),
    "a frame of no tokens": unknown_frame,
    "layers left out": fewer_layers,
    "all layers left out": in_config(num_hidden_layers=0),
    "no number by its name": in_config(layer_norm_eps=float("nan")),
    "labels by their names": in_config(id2label={str(number): "a" for number in range(200_000)}),
    "numbers in eight bits": in_eight_bits,
    "more tensors than any model has": many_tensors,
    "links in a circle": lambda folder, outside: (folder / "a.json").symlink_to("a.json"),
    "no tokenizer": no_tokenizer,
    "a long frame": long_frame,
    "a text twice": text_twice,
    "a long added token": in_tokenizer(
        added_tokens=[{"id": 5, "content": "a" * 5_000_000, "special": False, **PLAIN_TOKEN}]
    ),
    "no share": in_config(hidden_dropout_prob=float("inf")),
    "no yes and no": in_config(is_causal="x"),
    "half a character in a recipe": in_recipe(end_token="\ud800"),
    "half a character in a path": lambda folder, outside: (folder / "modules.json").write_text(
        (folder / "modules.json").read_text().replace("1_Pooling", "\\ud800")
    ),
    "more dimensions than there are": lambda folder, outside: change(
        folder / "config_sentence_transformers.json", truncate_dim=33
    ),
    "more tokens than there are positions": in_recipe(query_tokens=1_000_000),
    "another tensor": another_tensor,
    "other shapes": in_config(vocab_size=17),
    "a deep config": deep("config.json"),
    "a huge config": huge("config.json"),
    "a deep recipe": deep("e2rank.json"),
    "a huge recipe": huge("e2rank.json"),
    "deep modules": deep("modules.json"),
    "a deep tokenizer": deep("tokenizer.json"),
    "a huge tokenizer": huge("tokenizer.json"),
    "a deep tokenizer config": deep("tokenizer_config.json"),
    "deep special tokens": deep("special_tokens_map.json"),
    "pickled shards": sharded("pytorch_model.bin"),
    "shards outside": sharded("{up}/model.safetensors"),
    "shards by an absolute path": sharded("{outside}/model.safetensors"),
    "pickles beside a decoy": only_pickles,
    "linked weights": linked("model.safetensors"),
    "a linked config": linked("config.json"),
    "a linked tokenizer": linked("tokenizer.json"),
    "a linked template": linked("chat_template.jinja"),
    "a linked recipe": linked("e2rank.json"),
    "pooling outside": modules_outside,
    "an adapter beside": peft_beside,
    "a huge template": huge("chat_template.jinja"),
    "a huge vocabulary": huge("vocab.txt"),
    "arguments of a tokenizer": in_tokenizer_config(init_inputs=["/etc/hostname"]),
    "a tokenizer of gguf": in_tokenizer_config(gguf_file="weights.gguf"),
    "an id beyond the vocabulary": another_tokenizer,
    "a special id beyond it": special_beyond,
    "no text in the frame": no_text_in_the_frame,
    "random tokens": in_model_of_tokenizer(type="BPE", vocab={"a": 0}, merges=[], dropout=0.5),
    "long words": in_model_of_tokenizer(max_input_chars_per_word=10_000_000),
    "a normaliser that grows": normalizers(*[DOUBLE] * 40),
    "one that grows between": normalizers(*[BETWEEN] * 40),
    "one that grows by bytes": normalizers(*[BYTES] * 40),
    "a growing pre-tokeniser": in_tokenizer(
        pre_tokenizer={"type": "Sequence", "pretokenizers": [BYTES] * 40}
    ),
    "nested repetition": regex("(a+)+$"),
    "repeated choice": regex("(?:a|aa)+$"),
    "repetition in a lookahead": regex("(?=(a+)+b)"),
    "four loops": regex("a*a*a*a*b"),
    "many steps": normalizers(*[{"type": "NFKC"}] * 1000),
    "many added tokens": in_tokenizer(
        added_tokens=[
            {
                "id": 500 + number,
                "content": f"<{number}>",
                **PLAIN_TOKEN,
                "special": True,
            }
            for number in range(30_000)
        ]
    ),
}
