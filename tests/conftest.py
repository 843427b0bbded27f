"""Shared models: tiny ones from a config with fixed seeds, and all-MiniLM-L6-v2 for real weights.

The tiny tokenizers are trained on the text below, with the normaliser, the pre-tokeniser and the
special tokens of the real family, since those are where ids go wrong.
"""

from __future__ import annotations

import gc
import json
import os
import signal
from importlib.util import find_spec
from pathlib import Path

import certifi
import pytest
import torch
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (
    BertConfig,
    BertModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5ForConditionalGeneration,
    XLMRobertaConfig,
    XLMRobertaModel,
)
from transformers.models.qwen2 import Qwen2Tokenizer

from e2rank_rag.evidence import Evidence
from e2rank_rag.feedback import Feedback
from e2rank_rag.models.cross_encoder import CrossEncoder
from e2rank_rag.models.encoder import Encoder
from e2rank_rag.models.residual import ResidualHead
from e2rank_rag.models.resrank import ResRank
from e2rank_rag.recipe import EncoderOf, ResidualLayout, ResRankRecipe

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "false"  # importing haystack would write a file for it

collect_ignore_glob = [
    f"integrations/test_{name}*"
    for name, module in (("haystack", "haystack"), ("langchain", "langchain_core"))
    if find_spec(module) is None
]

TEXT = """\
Given a web search query, retrieve relevant passages that answer the query
Given a web search query and some relevant documents, rerank the documents that answer the query:
Instruct: Query: Search Query: Documents: user assistant
Query:cats Query:dogs Query:cats Query:dogs :cats :dogs :cars :dots
A ferry crosses the strait between the two islands four times a day, except when the wind is high.
The oldest bridge over the river was built in 1387 and carries trams, bicycles and people on foot.
Bread rises because yeast turns sugar into carbon dioxide; salt slows it down.
A prime number has no divisors but one and itself: 2, 3, 5, 7, 11, 13, 17 and so on.
Glaciers move downhill under their own weight, a few metres or a few hundred metres a year.
To reset the router, hold the button for ten seconds (until the light blinks twice), then wait.
La biblioteca abre a las nueve. Die Katze schläft auf dem Ofen. Le train part à six heures.
図書館は九時に開きます。猫はストーブの上で寝ています。 Библиотека открывается в девять.
def add(a, b):\n    return a + b\n\n\n  # comments, too: `x == y` -> True
cats purr, cats sleep, cats purr again; dogs bark, dogs dig, dogs bark again!
""".splitlines()

QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# Qwen3's template without tools and reasoning history.
QWEN_CHAT = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""


def qwen3_tokenizer() -> Qwen2Tokenizer:
    """Byte-level BPE as in Qwen3: special tokens, and added ones that are not special."""
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend.train_from_iterator(
        TEXT, trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    )
    model = json.loads(backend.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=model["vocab"],
        merges=[tuple(merge) for merge in model["merges"]],
        chat_template=QWEN_CHAT,
        model_max_length=2048,
        extra_special_tokens=["<|im_start|>", "<|im_end|>"],
    )
    tokenizer.add_tokens(
        [AddedToken(t, special=False, normalized=False) for t in ("<think>", "</think>")]
    )
    return tokenizer


def bert_tokenizer() -> PreTrainedTokenizerFast:
    """WordPiece with BERT's normaliser, pre-tokeniser and `[CLS] ... [SEP]`."""
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    backend.train_from_iterator(
        [*TEXT, "[ ] < > / | _"],
        trainers.WordPieceTrainer(vocab_size=500, special_tokens=special, show_progress=False),
    )
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, backend.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=128,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def xlmr_tokenizer() -> PreTrainedTokenizerFast:
    """Unigram as in XLM-R, whose specials are pieces of the vocabulary; it knows no `<`."""
    backend = Tokenizer(models.Unigram())
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    backend.decoder = decoders.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    backend.train_from_iterator([line for line in TEXT if "<" not in line], trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[(token, backend.token_to_id(token)) for token in ("<s>", "</s>")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=128,
        bos_token="<s>",
        cls_token="<s>",
        eos_token="</s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
    )


def t5_tokenizer() -> PreTrainedTokenizerFast:
    """Unigram as in T5, with sentinels that are pieces of the vocabulary; `</s>` closes a text."""
    backend = Tokenizer(models.Unigram())
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    backend.decoder = decoders.Metaspace()
    sentinels = [f"<extra_id_{number}>" for number in range(21)]
    trainer = trainers.UnigramTrainer(
        vocab_size=320,
        special_tokens=["<pad>", "</s>", "<unk>", *sentinels],
        unk_token="<unk>",
        show_progress=False,
    )
    backend.train_from_iterator([*TEXT, "Query: Document: < > / _"], trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="$A </s>",
        pair="$A </s> $B </s>",
        special_tokens=[("</s>", backend.token_to_id("</s>"))],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=512,
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        extra_special_tokens=sentinels,
    )


def write_sentence_transformers_layout(
    folder: Path, dim: int, *, pooling: str = "mean", max_length: int = 128
) -> None:
    """The files beside the weights, as sentence-transformers wrote them for years."""
    kinds = ("Transformer", "Pooling", "Normalize")
    modules = [
        {
            "idx": index,
            "name": str(index),
            "path": f"{index}_{kind}" if index else "",
            "type": f"sentence_transformers.models.{kind}",
        }
        for index, kind in enumerate(kinds)
    ]
    names = {"mean": "mean_tokens", "cls": "cls_token", "max": "max_tokens", "last": "lasttoken"}
    flags = {f"pooling_mode_{name}": key == pooling for key, name in names.items()}
    files = {
        "modules.json": modules,
        "1_Pooling/config.json": {"word_embedding_dimension": dim, **flags},
        "sentence_bert_config.json": {"max_seq_length": max_length, "do_lower_case": False},
        "config_sentence_transformers.json": {"prompts": {}, "similarity_fn_name": "cosine"},
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content))


def pytest_collection_finish():
    """Leave what all tests imported out of every later collection: it is a million objects, and
    each training run collects garbage."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def one_certificate(tmp_path_factory):
    """A bundle of one certificate for HTTP clients, which read the whole one in 0.04 s each. No
    test connects over TLS."""
    end = "-----END CERTIFICATE-----"
    first, *_ = Path(certifi.where()).read_text(encoding="utf-8").partition(end)
    bundle = tmp_path_factory.mktemp("certificates") / "one.pem"
    bundle.write_text(first + end + "\n", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(certifi, "where", lambda: str(bundle))
        yield


@pytest.fixture
def interruptible():
    """Ctrl-C as on a terminal: what runs in the background may start with the signal ignored, and
    hands that on to the processes that it starts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def plain_output(monkeypatch):
    """rich takes a file for a terminal when this is set, as some CI systems do."""
    monkeypatch.delenv("FORCE_COLOR", raising=False)


@pytest.fixture(scope="session")
def tiny_qwen3(tmp_path_factory) -> Path:
    """A bare Qwen3 folder, which says nothing about pooling and prompts: 32 dimensions."""
    folder = tmp_path_factory.mktemp("tiny-qwen3")
    tokenizer = qwen3_tokenizer()
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=2048,
        # Wide enough that different texts lie apart.
        initializer_range=0.2,
        # No pad_token_id, as in Qwen3: torch would zero that row, which is the end token's.
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(0)
    Qwen3Model(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory) -> Path:
    """A BERT folder in the sentence-transformers layout, mean pooling: 32 wide, 128 tokens."""
    folder = tmp_path_factory.mktemp("tiny-bert")
    tokenizer = bert_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        initializer_range=0.2,
    )
    torch.manual_seed(1)
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_sentence_transformers_layout(folder, 32)
    return folder


@pytest.fixture(scope="session")
def tiny_xlmr(tmp_path_factory) -> Path:
    """An XLM-R folder in the sentence-transformers layout, CLS pooling: 32 wide, 128 tokens."""
    folder = tmp_path_factory.mktemp("tiny-xlmr")
    tokenizer = xlmr_tokenizer()
    config = XLMRobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        # Positions start behind the pad token's, two rows in: 128 tokens can be placed.
        max_position_embeddings=130,
        initializer_range=0.2,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(2)
    XLMRobertaModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_sentence_transformers_layout(folder, 32, pooling="cls")
    return folder


@pytest.fixture(scope="session")
def tiny_t5(tmp_path_factory) -> Path:
    """A T5 encoder-decoder, which says nothing of ranking: 32 wide, `<extra_id_0>` to `_20`."""
    folder = tmp_path_factory.mktemp("tiny-t5")
    tokenizer = t5_tokenizer()
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        # Wide enough that different pairs lie apart.
        initializer_factor=1.5,
        decoder_start_token_id=tokenizer.pad_token_id,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(3)
    T5ForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def worded_bert(tiny_bert, tmp_path_factory) -> Path:
    """The tiny BERT with a recipe in which words add to the scores, and feedback."""
    changes = {"evidence": Evidence(words=0.6, expansion=0.4), "feedback": Feedback()}
    with Encoder.from_pretrained(tiny_bert) as encoder:
        recipe = encoder.recipe.model_copy(update=changes)
        with encoder.with_recipe(recipe) as worded:
            return worded.save(tmp_path_factory.mktemp("worded-bert"))


@pytest.fixture(scope="session")
def tiny_resrank(tiny_bert, tmp_path_factory) -> Path:
    """A ResRank folder: the tiny BERT is its encoder and, untrained, its reranker."""
    encoder, reranker = Encoder.from_pretrained(tiny_bert), Encoder.from_pretrained(tiny_bert)
    layout = ResidualLayout()
    recipe = ResRankRecipe(encoder=EncoderOf(base=".", digest=encoder.digest), layout=layout)
    head = ResidualHead(32, 32, layout, gates=(1.0, 0.5))
    with ResRank(encoder, reranker, head, recipe, name="tiny-resrank") as resrank:
        return resrank.save(tmp_path_factory.mktemp("tiny-resrank"))


@pytest.fixture(scope="session")
def tiny_rankt5(tiny_t5, tmp_path_factory) -> Path:
    """A RankT5 folder that says what it is: an encoder-decoder, 64 tokens of a pair."""
    with CrossEncoder.from_pretrained(tiny_t5, max_length=64) as ranker:
        return ranker.save(tmp_path_factory.mktemp("tiny-rankt5"))


@pytest.fixture(scope="session")
def qwen3(tiny_qwen3):
    """The tiny Qwen3 opened as the released E2Rank models are."""
    with Encoder.from_pretrained(tiny_qwen3, pooling="last", prompts="e2rank") as encoder:
        yield encoder


@pytest.fixture(scope="session")
def bert(tiny_bert):
    with Encoder.from_pretrained(tiny_bert) as encoder:
        yield encoder


@pytest.fixture(scope="session")
def minilm():
    """all-MiniLM-L6-v2, 384 dimensions: real weights."""
    with Encoder.from_pretrained("minilm") as encoder:
        yield encoder
