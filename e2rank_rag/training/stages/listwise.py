"""Stage 2: a listwise model, joint or as an adapter, trained by InfoNCE and RankNet."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from e2rank_rag.evidence import CandidateWords, Evidence, Scores
from e2rank_rag.models.e2rank import Backbone, RecentVectors, TextModel, blend
from e2rank_rag.models.e2rank_folder import save_adapter
from e2rank_rag.recipe import Recipe
from e2rank_rag.rerankers import ListwiseReranker
from e2rank_rag.rerankers.evidence import FEEDBACK
from e2rank_rag.tokenization import TextTokenizer, padded
from e2rank_rag.training.base_model import (
    open_base,
    save_merged,
    trainable_model,
)
from e2rank_rag.training.config import ListwiseConfig
from e2rank_rag.training.config_blocks import PromptOptions
from e2rank_rag.training.lists import TrainingList, scored_tensors, task_of
from e2rank_rag.training.objective import list_loss
from e2rank_rag.training.relevance import relevant_texts, scored_places
from e2rank_rag.training.stages.vector_lists import VectorListStage
from e2rank_rag.training.vectors import FrozenVectors
from e2rank_rag.types import Embeddings, RankingExample

CACHED_QUERIES = 10_000
"""Query vectors of the dev sets that are kept while the base is frozen."""

Embed = Callable[[Mapping[str, Tensor]], Tensor]
"""Tokens of `TextTokenizer.collate`, [n, L], to unit vectors, float32 [n, D]."""


class Weighed(NamedTuple):
    """The documents of an example as a reranker reads them.

    order: for a prompt. mean: float32 [dim], what feedback adds to the reranking vector. added:
    float32, one per document, what words add to its standardised cosine.
    """

    order: Sequence[str]
    mean: Embeddings | None = None
    added: Scores | None = None


class Listwise(VectorListStage[ListwiseConfig]):
    """Stage 2 of E2Rank."""

    @contextmanager
    def open(self) -> Iterator[None]:
        """In joint mode the base is closed before training: a copy of its weights is trained."""
        config = self.config
        if config.counterfactual and self.arguments.per_device_train_batch_size < 2:
            raise ValueError(
                "counterfactual takes another query's documents, and a batch has one query: set "
                "trainer.per_device_train_batch_size to 2 or more"
            )
        with (
            open_base(config, self.arguments.device) as opened,
            opened.with_recipe(_recipe(opened.recipe, config)) as base,
        ):
            tokenizers, frozen = self.read(base, frozen=config.mode == "adapter")
            self.data = ListwiseData(config, tokenizers, frozen)
            self.model = trainable_model(config, base.weights_folder)
            self.encoder = self._encoder(tokenizers[None])
            self.reranker = ListwiseReranker(self.encoder, stored_vectors="trust")
            if frozen is None:
                base.close()
                opened.close()
            yield

    def _encoder(self, tokenizer: TextTokenizer) -> TextModel:
        """The model in training as it will serve."""
        if self.config.mode == "joint":
            return TextModel(self.model, tokenizer)
        return TextModel(
            self.base.loaded.transformer,
            tokenizer,
            listwise=self.model,
            recent=RecentVectors(CACHED_QUERIES),
        )

    def step_loss(
        self, model: nn.Module, batch: Mapping[str, Any]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `listwise_loss`."""
        weight = self.base.recipe.query_weight
        untrained = self._untrained if self.config.anchor else None
        return listwise_loss(self._embed(model), batch, self.config, weight, untrained)

    def _embed(self, transformer: nn.Module) -> Embed:
        backbone = Backbone(transformer, truncate_dim=self.base.recipe.truncate_dim)
        return lambda tokens: backbone(**tokens)[:, 0]

    def _untrained(self, tokens: Mapping[str, Tensor]) -> Tensor:
        """The vectors without the adapter, by the frozen base. Not in inference mode: autograd
        could not keep them for the gradient of the others."""
        with torch.no_grad():
            return self._embed(self.base.loaded.transformer)(tokens)

    def save(self, model: Any) -> None:
        """An adapter beside the base's name, or an encoder with new weights."""
        output, base = self.config.output, self.base
        if self.config.mode == "adapter":
            save_adapter(output, model, base.recipe, base=base.name, digest=base.digest)
        else:
            save_merged(output, model, base.weights_folder, base.recipe)


@dataclass
class ListwiseData:
    """Each example becomes a list to score and a listwise prompt.

    tokenizers: by task. frozen: the vectors in adapter mode; None: queries and documents are
        encoded in each step.
    """

    config: ListwiseConfig
    tokenizers: Mapping[str | None, TextTokenizer]
    frozen: FrozenVectors | None = None

    def sample(self, example: RankingExample, draw: random.Random) -> TrainingList:
        """The list is the same in each epoch; the prompt's documents and depth are drawn."""
        config = self.config
        places, positive = scored_places(example, config.list_size, config.positive)
        weighed = self._weighed(example)
        shown = _shown(weighed.order, config.prompt, draw)
        added = weighed.added
        return TrainingList(
            query=example.query,
            documents=tuple(example.documents[place] for place in places),
            labels=tuple(example.labels[place] for place in places),
            positive=positive,
            relevant=relevant_texts(example, best=config.positive == "highest"),
            task=example.task,
            shown=shown,
            depth=draw.choice(config.prompt.depths),
            feedback=weighed.mean,
            added=None if added is None else tuple(added[places].tolist()),
        )

    def collate(self, lists: Sequence[TrainingList]) -> dict[str, Any]:
        """What `lists.scored_tensors` gives; `prompts`, the tokens of the listwise prompts;
        `feedback` [B, D] and `added` [B, L], if the lists have them; and with a counterfactual
        `others`, the prompts with the documents of the next query, unless they show none."""
        depth = lists[0].depth  # one for the batch: prompts of one depth have similar lengths
        tokenizer = self.tokenizers[task_of(lists)]
        queries, shown = [each.query for each in lists], [each.shown for each in lists]

        def prompts(shown: Sequence[Sequence[str]]) -> dict[str, Tensor]:
            return tokenizer.collate(tokenizer.listwise(queries, shown, depth)[0])

        batch = {"prompts": prompts(shown), **scored_tensors(lists, self.tokenizers, self.frozen)}
        if self.config.counterfactual and depth:
            batch["others"] = prompts([*shown[1:], shown[0]])
        feedback = [each.feedback for each in lists if each.feedback is not None]
        if feedback:
            batch["feedback"] = torch.from_numpy(np.stack(feedback))
        added = [each.added for each in lists if each.added is not None]
        if added:
            batch["added"] = padded(added, dtype=torch.float32)
        return batch

    def _weighed(self, example: RankingExample) -> Weighed:
        config, documents = self.config, example.documents
        if self.frozen is None or (config.feedback is None and config.evidence is None):
            return Weighed(documents)
        vectors = self.frozen.documents.of(documents)
        (query,) = self.frozen.queries[example.task].of([example.query])
        cosines = vectors @ query
        words = CandidateWords.of(example.query, documents, (config.evidence or Evidence()).bm25)
        weighed = Weighed(documents)
        if config.evidence is not None:
            known = (config.feedback or FEEDBACK).evidence(words, cosines)
            weighed = weighed._replace(added=config.evidence.added(words, known))
        if config.feedback is not None:
            places, mean, _ = config.feedback.choose(words, cosines, vectors)
            weighed = weighed._replace(order=[documents[place] for place in places], mean=mean)
        return weighed


def listwise_loss(
    embed: Embed,
    batch: Mapping[str, Any],
    config: ListwiseConfig,
    query_weight: float,
    untrained: Embed | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a batch of `ListwiseData`, and its parts by name.

    In joint mode the InfoNCE compares plain queries (E2Rank, eq. 2). In adapter mode those are
    frozen, so it compares the reranking vectors.

    untrained: the model without its adapter, for the anchor; None: no anchor.
    """
    listwise = embed(batch["prompts"])
    joint = "documents" in batch
    queries = embed(batch["queries"]) if joint else batch["query_vectors"]
    documents = embed(batch["documents"]) if joint else batch["document_vectors"]
    documents = documents.view(*batch["relevance"].shape, -1)

    def reranking(listwise: Tensor) -> Tensor:
        blended = blend(queries, listwise, query_weight)
        if "feedback" not in batch:
            return blended
        return F.normalize(blended + batch["feedback"], dim=-1)

    better = reranking(listwise)
    loss, parts = list_loss(
        batch,
        config,
        queries=queries if joint else better,
        documents=documents,
        better=better,
        contextual=documents,
    )
    if untrained is not None:
        anchor = 1.0 - (listwise * untrained(batch["prompts"])).sum(-1).mean()
        loss, parts["anchor"] = loss + config.anchor * anchor, anchor.detach()
    if "others" in batch:
        positives = documents.flatten(0, 1)[batch["positives"]]
        lower = ((better - reranking(embed(batch["others"]))) * positives).sum(-1)
        missed = F.relu(config.margin - lower).mean()
        loss, parts["counterfactual"] = loss + config.counterfactual * missed, missed.detach()
    return loss, parts


def _shown(
    documents: Sequence[str], options: PromptOptions, draw: random.Random
) -> tuple[str, ...]:
    """The prompt's documents. Shuffled, they are drawn from twice as many as it shows, because what
    it shows varies in serving too."""
    depth, order = max(options.depths), options.order
    shown = list(documents[: 2 * depth])
    if order == "shuffled" or (order == "mixed" and draw.random() >= 0.5):
        draw.shuffle(shown)
    del shown[depth:]
    if options.dropout:
        shown = [document for document in shown if draw.random() >= options.dropout]
    return tuple(shown)


def _recipe(base: Recipe, config: ListwiseConfig) -> Recipe:
    """The recipe of the trained model."""
    options = config.prompt
    limits = {
        name: getattr(options, name)
        for name in ("document_tokens", "max_tokens")
        if getattr(options, name) is not None
    }
    budget = base.listwise.model_copy(update={"depth": max(options.depths), **limits})
    weight = base.query_weight if config.query_weight is None else config.query_weight
    changes = {"listwise": budget, "query_weight": weight, "adapter": None}
    words = {"feedback": config.feedback, "evidence": config.evidence}
    return base.model_copy(update={**changes, **words})
