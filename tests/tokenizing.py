"""Texts, recipes and functions that the tests of tokenisation share."""

from __future__ import annotations

from e2rank_rag.models.tokenizer_files import load_tokenizer
from e2rank_rag.prompts import E2RANK, PLAIN
from e2rank_rag.recipe import ListwiseBudget, Recipe
from e2rank_rag.tokenization import (
    TextTokenizer,
    plain_tokenizer,
)

END = "<|endoftext|>"
SPECIALS = [
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<think>",
    "</think>",
    "[SEP]",
    "[CLS]",
    "[PAD]",
    "[UNK]",
    "<s>",
    "</s>",
    "<pad>",
    "<unk>",
]

# What follows a seam of the template decides how the tokenizer splits around it.
SEAMS = [
    "cats purr",
    "2 islands, 17 ferries",
    ": cats",
    "- `x == y`",
    "\ncats\n",
    "\n\n  cats\n\n\n",
    "  cats  ",
    "\tcats\t\r\n",
    "図書館は九時に開きます。",
    "🙂 cats 👩‍👩‍👧",
    "e\u0301te\u0301",
    "don't",
    "?",
]

WORDS = [
    "cats",
    "dogs",
    "ferry",
    "bridge,",
    "1387",
    "図書館",
    "🙂",
    "\n",
    "  ",
    "(x)",
    "e\u0301",
    ":",
]

QWEN = Recipe(
    pooling="last",
    end_token=END,
    prompts=E2RANK,
    query_tokens=512,
    document_tokens=1024,
    listwise=ListwiseBudget(max_tokens=2048),
)
BERT = Recipe(
    pooling="mean",
    prompts=PLAIN,
    query_tokens=128,
    document_tokens=128,
    listwise=ListwiseBudget(depth=8, document_tokens=50, max_tokens=128),
)


def text_tokenizer(folder, recipe):
    tokenizer = load_tokenizer(folder)
    return TextTokenizer(tokenizer, plain_tokenizer(tokenizer), recipe)


def with_budget(recipe, **listwise):
    budget = recipe.listwise.model_copy(update=listwise)
    return recipe.model_copy(update={"listwise": budget})


def released_listwise(tokenizer, query, documents):
    """The evaluation prompt as one string, encoded at once."""
    numbered = "\n".join(f"[{i}] {text}" for i, text in enumerate(documents, start=1))
    content = (
        "Given a web search query and some relevant documents, rerank the documents that answer "
        f"the query:\nDocuments:\n{numbered}\nSearch Query: {query}"
    )
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}],
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=False,
    )
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def random_text(random_source, words):
    return " ".join(random_source.choices(WORDS, k=words))


def contains(ids, part):
    return any(ids[i : i + len(part)] == part for i in range(len(ids) - len(part) + 1))
