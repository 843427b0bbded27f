"""The configuration of a training run: one YAML file, one stage. Unknown keys are errors.

    config = read_config("stage2-adapter.yaml", ["trainer.max_steps=100"])

Defaults are those of the paper (arXiv 2510.22733, section 3 and appendix C) if it has any.
`e2rank train --help-config` prints every field.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from e2rank_rag.evidence import Evidence
from e2rank_rag.feedback import Feedback
from e2rank_rag.models.folders import model_name
from e2rank_rag.prompts import Prompts
from e2rank_rag.recipe import PairPooling, Pooling, ResidualLayout, Structure
from e2rank_rag.training.config_blocks import LoraOptions, Order, PromptOptions, Source, Strict
from e2rank_rag.training.settings import override, read_settings, told

ADAPTER_CONFIG = Path(__file__).parent / "configs" / "adapter.yaml"
"""What `e2rank adapt` trains with."""


def _named(model: Any) -> Any:
    return model_name(model) if isinstance(model, Path) else model


ModelName = Annotated[str, BeforeValidator(_named)]
"""As `folders.find_model` takes it: a `Path` is a folder, whatever its name."""

MARGIN = 0.05
"""The default of `margin`, a difference of cosines."""

RankingLoss = Literal["point_ce", "pair", "softmax", "poly1"]

Targets = Literal["relevant", "labels"]


class StageConfig(Strict):
    """The settings of every stage."""

    init_from: ModelName = Field(description="The base: a folder, a hub id, or a shipped name.")
    output: Path = Field(description="The folder of the trained model and of its run folder.")
    data: tuple[Source, ...] = Field(min_length=1, description="Sources to train on.")
    dev: tuple[Source, ...] = Field(
        default=(), description="Sources to measure on while training, for early stopping."
    )
    balance: float = Field(
        default=1.0,
        ge=0.0,
        description="A source is drawn in proportion to its size to this power; 0: evenly.",
    )
    dropout: float | None = Field(
        default=None, ge=0.0, lt=1.0, description="Dropout in training. None: the model's."
    )
    lora: LoraOptions | None = Field(
        default=None, description="LoRA layers. None: all weights are trained."
    )
    patience: int | None = Field(
        default=None,
        ge=1,
        description="Stop after this many measurements in a row without a better one. None: never.",
    )
    trainer: dict[str, Any] = Field(
        default={}, description="Arguments of transformers.TrainingArguments."
    )


class EncoderConfig(StageConfig):
    """A stage that trains an encoder."""

    pooling: Pooling | None = Field(
        default=None, description="The base's pooling, only if its folder does not state it."
    )
    prompts: Prompts | str | None = Field(
        default=None,
        description="The base's prompts, only if its folder does not state them: a record, or a "
        "name in `prompts.NAMED_PROMPTS`.",
    )


class ContrastiveConfig(EncoderConfig):
    """Stage 1: InfoNCE over the documents of a batch."""

    stage: Literal["contrastive"] = "contrastive"
    negatives: int = Field(
        default=1,
        ge=0,
        description="Hard negatives per query, drawn in each epoch from its documents with a label "
        "of 0 or below. 0: in-batch negatives only.",
    )
    temperature: float = Field(default=0.03, gt=0.0, description="Divides the cosines.")
    near_positive: float | None = Field(
        default=None,
        gt=0.0,
        le=1.0,
        description="A document whose cosine with the query's positive is this or more is not a "
        "negative of the query. None: only copies are left out.",
    )
    max_tokens: int | None = Field(
        default=None,
        ge=8,
        description="Limit of queries and documents in training. None: the model's, which the "
        "saved model has in any case.",
    )
    chunk_size: int | None = Field(
        default=32,
        ge=1,
        description="Texts of one forward pass; the gradient is that of the whole batch "
        "(GradCache). None: the batch at once.",
    )
    cross_device_negatives: bool = Field(
        default=False,
        description="The documents of all processes are negatives; the gradient is that of one "
        "process that holds them all.",
    )


class ListConfig(EncoderConfig):
    """InfoNCE + ranknet_weight * RankNet over lists."""

    list_size: int = Field(
        default=16,
        ge=2,
        description="Documents of a list that are scored: the first relevant ones, up to half of "
        "the list, and the first others.",
    )
    positive: Literal["highest", "known"] = Field(
        default="highest",
        description="The positive of the InfoNCE: the document with the highest label, or the "
        "judged one beside a teacher's labels.",
    )
    vectors: Path | None = Field(
        default=None,
        description="Vector folder, which keeps frozen document vectors for the next training run. "
        "None: they are encoded again.",
    )
    ranknet_weight: float = Field(default=2.0, ge=0.0, description="Weight of RankNet.")
    ranknet_temperature: float = Field(
        default=0.1, gt=0.0, description="Divides the cosines in RankNet."
    )
    info_nce_weight: float = Field(default=1.0, ge=0.0, description="Weight of the InfoNCE.")
    info_nce_temperature: float = Field(
        default=0.03, gt=0.0, description="Divides the cosines in the InfoNCE."
    )

    @model_validator(mode="after")
    def _trains_something(self) -> Self:
        if self.ranknet_weight == self.info_nce_weight == 0.0:
            raise ValueError("ranknet_weight and info_nce_weight are both 0: nothing is trained")
        return self


class ListwiseConfig(ListConfig):
    """Stage 2 of E2Rank: InfoNCE and RankNet on listwise prompts."""

    stage: Literal["listwise"] = "listwise"
    mode: Literal["joint", "adapter"] = Field(
        description='"joint": one set of weights for queries, documents and prompts; needs a new '
        'index. "adapter": LoRA weights for prompts only, over document vectors that stay.'
    )
    prompt: PromptOptions = Field(
        default=PromptOptions(), description="Listwise prompts in training."
    )
    query_weight: float | None = Field(
        default=None,
        ge=0.0,
        lt=1.0,
        description="`a` in `a * query + (1 - a) * listwise`, in training and as saved. None: the "
        "model's.",
    )
    feedback: Feedback | None = Field(
        default=None,
        description="Feedback from the candidates' vectors, in training and as saved; for mode "
        '"adapter" only. None: no feedback.',
    )
    evidence: Evidence | None = Field(
        default=None,
        description="What the words of the candidates add to their cosines in RankNet, and as "
        'saved; for mode "adapter" only. None: RankNet orders cosines.',
    )
    anchor: float = Field(
        default=0.0,
        ge=0.0,
        description="Weight of the anchor to the untrained model: the mean of 1 - cosine between "
        'the listwise vectors with and without the adapter; for mode "adapter" only.',
    )
    counterfactual: float = Field(
        default=0.0,
        ge=0.0,
        description="Weight of the counterfactual: a prompt with the documents of another query "
        "of the batch must score the positive lower, by `margin`; else the difference is the loss.",
    )
    margin: float = Field(
        default=MARGIN, gt=0.0, description="By how much cosine lower; see `counterfactual`."
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.mode == "adapter" and self.lora is None:
            raise ValueError('mode "adapter" trains LoRA weights: give lora, such as {rank: 16}')
        for name in ("vectors", "feedback", "evidence"):
            if self.mode == "joint" and getattr(self, name) is not None:
                raise ValueError(f'{name}: in mode "joint" documents are not frozen; leave it out')
        if self.mode == "joint" and self.anchor:
            raise ValueError('anchor: in mode "joint" there is no adapter; leave it out')
        if self.margin != MARGIN and not self.counterfactual:
            raise ValueError("margin is for the counterfactual, whose weight is 0: leave it out")
        return self


class ResRankConfig(ListConfig):
    """ResRank: InfoNCE and RankNet on lists of one vector per document.

    `init_from` is an encoder, or a ResRank that a second stage goes on with.
    """

    stage: Literal["resrank"] = "resrank"
    mode: Literal["joint", "frozen"] = Field(
        description='"joint": encoder and reranker together; needs a new index, and the InfoNCE '
        'compares the encoder\'s own vectors. "frozen": the reranker alone, over document vectors '
        "that stay; the InfoNCE compares the reranking vector with them."
    )
    reranker_from: ModelName | None = Field(
        default=None,
        description="The model that the reranker begins from. None: the encoder's weights, or the "
        "ResRank's reranker.",
    )
    layout: ResidualLayout | None = Field(
        default=None, description="The input format. None: the ResRank's, or the default."
    )
    gates: tuple[float, float] = Field(
        default=(1.0, 0.1),
        description="Factors of the hidden states of the query and of documents at the beginning; "
        'trained if layout.residual is "gated". Ignored for a ResRank.',
    )
    order: Order = Field(
        default="retrieved",
        description="Order of the documents in training: as retrieved, shuffled, or mixed: either, "
        "with even chance.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.mode == "joint" and self.vectors is not None:
            raise ValueError('vectors: in mode "joint" documents are not frozen; leave it out')
        return self


class RankT5Config(StageConfig):
    """A cross-encoder, by a ranking loss over the scores of a list (arXiv 2210.10634)."""

    stage: Literal["rankt5"] = "rankt5"
    structure: Structure | None = Field(
        default=None,
        description='"encoder-only" takes the encoder of a T5. None: what the base is.',
    )
    score_token: str | None = Field(
        default=None, description="See `CrossEncoderRecipe`. None: the model's."
    )
    pooling: PairPooling | None = Field(
        default=None, description="See `CrossEncoderRecipe`. None: the model's."
    )
    max_tokens: int | None = Field(
        default=None,
        ge=16,
        description="Limit of a pair, in training and as saved. None: the model's.",
    )
    retriever: ModelName = Field(
        default="minilm", description="The encoder that finds candidates for mined sources."
    )
    vectors: Path | None = Field(
        default=None,
        description="Vector folder, which keeps the retriever's document vectors for the next "
        "training run. None: they are encoded again.",
    )
    loss: RankingLoss = Field(default="softmax", description="The ranking loss.")
    epsilon: float = Field(default=1.0, ge=0.0, description='Weight of the second term of "poly1".')
    targets: Targets | None = Field(
        default=None,
        description='The labels in every loss but "pair": "relevant", 1 and 0, or the "labels" '
        'themselves. None: "relevant" for a teacher\'s order, "labels" for grades.',
    )
    list_size: int = Field(
        default=36,
        ge=2,
        description="Documents of a list: a relevant one and others, drawn in each epoch.",
    )
    candidates: int | None = Field(
        default=None,
        ge=1,
        description="The others come from this many first documents. None: from all.",
    )
    upsample: bool | None = Field(
        default=None,
        description="Count the relevant documents of a list as often as the others (section 5.1). "
        'None: for "point_ce", the only loss that can use it.',
    )
    chunk_tokens: int | None = Field(
        default=None,
        ge=16,
        description="Tokens of one forward pass, with padding; the gradient is that of the whole "
        "batch (activation checkpointing). None: the batch at once.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> RankT5Config:
        if self.upsample and self.loss != "point_ce":
            raise ValueError(f'upsample is for the loss "point_ce", not for "{self.loss}"')
        if "epsilon" in self.model_fields_set and self.loss != "poly1":
            raise ValueError(f'epsilon is for the loss "poly1", not for "{self.loss}"')
        if self.targets is not None and self.loss == "pair":
            raise ValueError(
                'targets: the loss "pair" takes only the order of labels; leave it out'
            )
        return self

    @property
    def upsamples(self) -> bool:
        """Whether the loss upsamples."""
        return self.loss == "point_ce" if self.upsample is None else self.upsample


C = TypeVar("C", bound=StageConfig)

STAGES: Mapping[str, type[StageConfig]] = {
    "contrastive": ContrastiveConfig,
    "listwise": ListwiseConfig,
    "resrank": ResRankConfig,
    "rankt5": RankT5Config,
}


def read_config(
    path: str | Path, overrides: Sequence[str] = (), given: Mapping[str, Any] | None = None
) -> StageConfig:
    """The configuration of a YAML file, with `key.key=value` in place of what it says.

    Its `stage` says which kind of `STAGES` it is; without one it is "listwise".

    Relative paths of sources count from the file's folder, `output` from the working directory.
    given: settings by name, such as data and output, in place of the file's; a block's keys replace
        those of the file's block. Paths in it stay as they are.
    Raises ValueError that names the file and the key.
    """
    path = Path(path)
    settings = read_settings(path)
    for sources in (settings.get("data"), settings.get("dev")):
        for source in sources if isinstance(sources, list) else ():
            for name in ("path", "corpus"):
                if isinstance(source, dict) and source.get(name) is not None:
                    source[name] = path.parent / str(source[name])
    for name, value in (given or {}).items():
        block = settings.get(name)
        if isinstance(block, dict) and isinstance(value, dict):
            value = {**block, **value}
        settings[name] = value
    for setting in overrides:
        override(settings, setting)
    stage = settings.get("stage", "listwise")
    if not isinstance(stage, str) or stage not in STAGES:
        raise ValueError(f"{path}: stage: {stage!r} is none of {sorted(STAGES)}")
    return _validated(STAGES[stage], path, settings)


def _validated(kind: type[C], path: Path, settings: dict[str, Any]) -> C:
    try:
        return kind.model_validate(settings)
    except ValidationError as error:
        raise ValueError(f"{path}: {told(error)}") from error
