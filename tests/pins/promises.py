"""What `tests/test_pins.py` compares: the values, computed by the code as it is.

python -m tests.pins.promises     writes tests/pins/promises.json again

Write it again only where a change of these values is meant: it breaks stored indices and models.
"""

from __future__ import annotations

import contextlib
import copy
import json
import sys
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from qdrant_client import QdrantClient
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    PreTrainedTokenizerFast,
    Trainer,
)

from e2rank_rag import (
    LANGCHAIN_LAYOUT,
    Document,
    Encoder,
    Hit,
    Layout,
    ListwiseReranker,
    QdrantStore,
    RocchioReranker,
    load_reranker,
)
from e2rank_rag.cli import main
from e2rank_rag.data import shipped_collection

FILE = Path(__file__).with_suffix(".json")
MODELS = ("minilm", "e2rank-minilm")
LONG = "a document that is longer than the limit of the model " * 40
DOCUMENTS = ["Paris is the capital of France.", "Cats purr when they are content.", LONG]
QUERIES = ["Which city is the capital of France?", "why do cats purr"]
CANDIDATES = 20
TOPICS = ("cats", "dogs", "ferry", "bridge")
TRAINER = (
    "{num_train_epochs: 2, per_device_train_batch_size: 2, learning_rate: 1.0e-3, warmup_steps: 0, "
    "logging_steps: 1, use_cpu: true, disable_tqdm: true, seed: 1}"
)
LISTS = "data: [{path: lists.jsonl}]\nlist_size: 4\n"
STAGES = {
    "contrastive": "negatives: 2\n",
    "joint": "stage: listwise\nmode: joint\nprompt: {depths: [1, 2], order: shuffled}\n",
    "adapter": "stage: listwise\nmode: adapter\nlora: {rank: 4}\nprompt: {depths: [2]}\n"
    "feedback: {lexical_weight: 0.7, temperature: 0.4, weight: 0.3}\nquery_weight: 0.3\n",
    "resrank": "mode: frozen\norder: shuffled\ngates: [1.0, 0.5]\n",
    "rankt5": "structure: encoder-only\nloss: softmax\nmax_tokens: 32\n",
}


def vectors():
    """Of the shipped model: documents, queries, and listwise prompts with the model's feedback."""
    with Encoder.from_pretrained("e2rank-minilm", dtype="float32") as encoder:
        return {
            "documents": encoder.encode_documents(DOCUMENTS).tolist(),
            "queries": encoder.encode_queries(QUERIES).tolist(),
            "listwise": encoder.encode_listwise(QUERIES, [DOCUMENTS] * 2).embeddings.tolist(),
        }


def identities():
    """Fingerprints and digests, by model."""
    found = {}
    for name in MODELS:
        with Encoder.from_pretrained(name) as encoder:
            found[name] = {"fingerprint": encoder.fingerprint, "digest": encoder.digest}
    return found


def rankings():
    """Ids and scores of three SciFact claims over the documents nearest to them."""
    collection = shipped_collection("scifact")
    claims = dict(list(collection.queries("train").items())[:3])
    judged = collection.qrels("train")
    pool = [d for d, _ in zip(collection.documents(), range(60), strict=False)]
    wanted = {id for claim in claims for id in judged[claim]}
    pool += [d for d in collection.documents() if d.id in wanted]
    pool = list({document.id: document for document in pool}.values())
    with Encoder.from_pretrained("e2rank-minilm", dtype="float32") as encoder:
        embedded = encoder.encode_documents([document.text for document in pool])
        lists = []
        for query in encoder.encode_queries(list(claims.values())):
            scores = embedded @ query
            nearest = np.argsort(-scores, kind="stable")[:CANDIDATES]
            lists.append([Hit(pool[i], float(scores[i]), embedded[i]) for i in nearest])
        rerankers = {
            "listwise": ListwiseReranker(encoder, stored_vectors="trust"),
            "no feedback": ListwiseReranker(encoder, feedback=False, stored_vectors="trust"),
            "rocchio": RocchioReranker(encoder, stored_vectors="trust"),
        }
        return {
            name: _ranked(reranker.rerank_batch(list(claims.values()), lists))
            for name, reranker in rerankers.items()
        }


def _ranked(lists):
    return [[[hit.document.id, hit.score] for hit in ranking] for ranking in lists]


def points():
    """Ids and payloads of the points of one document, by layout, and the collection's record."""
    identities = {"haystack": ("a/1", Layout()), "langchain": ("17", LANGCHAIN_LAYOUT)}
    found = {}
    for name, (id, layout) in identities.items():
        with tempfile.TemporaryDirectory() as folder:
            store = QdrantStore.open(folder, "pinned", layout=layout)
            store.prepare(2, fingerprint="0123", model="a-model")
            store.upsert([Document(id, "a text", {"year": 2024})], np.float32([[1.0, 0.0]]))
            store.close()
            client = QdrantClient(path=folder)
            ((point,), _) = client.scroll("pinned")
            metadata = client.get_collection("pinned").config.metadata
            client.close()
            found[name] = {"id": point.id, "payload": point.payload, "metadata": metadata}
    return found


def tiny_tokenizer():
    words = sorted({*"abcdefghijklmnopqrstuvwxyz0123456789?.", *TOPICS, "about", "so", "the"})
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {word: i for i, word in enumerate([*special, *words])}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")],
    )
    named = dict(zip(("pad", "unk", "cls", "sep", "mask"), special, strict=True))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=64,
        **{f"{name}_token": token for name, token in named.items()},
    )


def write_tiny(folder, kind):
    """A BERT whose weights are numpy's frozen random stream, the same on every machine."""
    tokenizer = tiny_tokenizer()
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    config = BertConfig(
        vocab_size=len(tokenizer),
        num_attention_heads=2,
        max_position_embeddings=64,
        num_labels=1,
        **sizes,
    )
    model = kind(config)
    stream = np.random.RandomState(0)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            values = stream.uniform(-0.3, 0.3, tuple(parameter.shape)).astype(np.float32)
            scale = 1.0 if name.endswith("LayerNorm.weight") else 0.0
            parameter.copy_(torch.from_numpy(values) + scale)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_lists(path):
    lines = []
    for row, topic in enumerate(TOPICS):
        documents = [f"{topic} so {other} {i}" for i, other in enumerate((*TOPICS, "the", "so"))]
        labels = [(row + 3 * i) % 4 if i % 2 else 0 for i in range(len(documents))]
        lines.append({"query": f"about {topic}", "documents": documents, "labels": labels})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def token_rows(batch):
    """The token ids of the texts in a batch, in its order, whatever its keys are called."""
    if isinstance(batch, dict) or hasattr(batch, "items"):
        for key, value in batch.items():
            if key == "input_ids":
                yield [[i for i in row if i] for row in value.tolist()]  # 0 is padding
            else:
                yield from token_rows(value)
    elif isinstance(batch, list | tuple):
        for part in batch:
            yield from token_rows(part)


def trained(name, folder):
    """The texts and the losses of a run of two epochs, and the e2rank.json that it wrote."""
    tokenizer, drawn = tiny_tokenizer(), []
    step = Trainer.training_step

    def watched(self, model, inputs, *arguments, **options):
        rows = [[tokenizer.decode(row) for row in rows] for rows in token_rows(inputs)]
        drawn.append(sorted(rows))
        return step(self, model, copy.copy(inputs), *arguments, **options)

    settings = STAGES[name] if "stage:" in STAGES[name] else f"stage: {name}\n{STAGES[name]}"
    data = "data: [{path: lists.jsonl}]\n" if name == "contrastive" else LISTS
    encoder = "" if name == "rankt5" else "pooling: mean\nprompts: plain\n"
    config = folder / f"{name}.yaml"
    config.write_text(
        f"{settings}{data}{encoder}init_from: base\noutput: {name}\ndropout: 0.0\n"
        f"trainer: {TRAINER}\n"
    )
    command = ["e2rank", "train", config.name]
    with (
        contextlib.chdir(folder),
        mock.patch.object(Trainer, "training_step", watched),
        mock.patch.object(sys, "argv", command),
        contextlib.suppress(SystemExit),
    ):
        main()
    lines = (folder / name / "run" / "metrics.jsonl").read_text().splitlines()
    losses = [record["loss"] for record in map(json.loads, lines) if "loss" in record]
    recipe = json.loads((folder / name / "e2rank.json").read_text())
    return {"drawn": drawn, "losses": losses, "recipe": recipe}


def training():
    """What each stage draws, loses and writes."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_tiny(folder / "base", BertModel)
        write_lists(folder / "lists.jsonl")
        found = {name: trained(name, folder) for name in STAGES}
        hits = [Hit(Document(topic, f"so {topic}"), 0.0) for topic in TOPICS]
        for name in found:
            with contextlib.chdir(folder), load_reranker(name) as reranker:
                found[name]["scores"] = _ranked([reranker.rerank("about the ferry", hits)])
        cross = write_tiny(folder / "cross", BertForSequenceClassification)
        with load_reranker(cross, system="rankt5") as reranker:
            found["cross-encoder"] = {"scores": _ranked([reranker.rerank("about cats", hits)])}
        return found


PARTS = (vectors, identities, rankings, points, training)


if __name__ == "__main__":
    written = json.dumps({part.__name__: part() for part in PARTS}, separators=(",", ":"))
    FILE.write_text(written + "\n")
