"""What a training run is told: one YAML file, one stage. Unknown keys are errors.

    config = read_config("stage2-adapter.yaml", ["trainer.max_steps=100"])

Values are those of the paper (arXiv 2510.22733, section 3 and appendix C) where it gives any.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from e2rank_rag.feedback import Feedback
from e2rank_rag.list_tokenization import ResidualLayout
from e2rank_rag.models.folders import model_name
from e2rank_rag.pair_tokenization import PairPooling, Structure
from e2rank_rag.prompts import Prompts
from e2rank_rag.recipe import Pooling
from e2rank_rag.training.settings import as_written, override, read_settings, told

ADAPTER_CONFIG = Path(__file__).parent / "configs" / "adapter.yaml"
"""What `e2rank adapt` trains with."""

Order = Literal["retrieved", "shuffled", "mixed"]


def _named(model: Any) -> Any:
    return model_name(model) if isinstance(model, Path) else model


ModelName = Annotated[str, BeforeValidator(_named)]
"""As `names.find_model` takes it: a `Path` is a folder, whatever it is called."""

RankingLoss = Literal["point_ce", "pair", "softmax", "poly1"]

Targets = Literal["relevant", "labels"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _as_written(cls, value: Any, info: ValidationInfo) -> Any:
        return as_written(value, cls.model_fields[str(info.field_name)].annotation)


class Source(_Strict):
    """Examples to train or measure on.

    path: a BEIR folder, whose lists are mined with the model that training begins from, or a file
        that `examples.read_examples` reads.
    split: of a folder.
    corpus: file of documents: texts for examples that hold ids only, and with `mine` the documents
        that lists are mined from, beside those of the examples.
    limit: take so many examples, drawn by the seed; so many of each `source` that the lines of a
        file name; None: all.
    mine: of a file, for pairs and triples: lists are mined from all its documents and those of the
        corpus together, and its labels are the judgements. False: its lists are taken as they are.
    depth: candidates of a mined list. first_negative: see `mining.mine_lists`.
    task: the instruction of queries that name none of their own, for models whose prompts have one:
        a name that `prompts.resolve_task` knows, or a sentence, which is that of plain queries
        alone. None: lines whose source is one of `prompts.SOURCE_TASKS` have that one's. Rankers of
        pairs have no instruction.
    """

    path: Path
    split: str = "train"
    corpus: Path | None = None
    limit: int | None = Field(default=None, ge=1)
    mine: bool = False
    depth: int = Field(default=100, ge=2)
    first_negative: int = Field(default=0, ge=0)
    task: str | None = None

    @model_validator(mode="after")
    def _used(self) -> Self:
        """ValueError for what would be left unused."""
        of = {}
        if self.path.is_dir():
            of = {"corpus": "a file of examples", "mine": "a file of examples"}
        elif self.path.is_file():
            of = {"split": "a BEIR folder"}
            if not self.mine:
                of |= dict.fromkeys(("depth", "first_negative"), "lists that are mined")
        for name in self.model_fields_set & of.keys():
            if getattr(self, name):
                raise ValueError(f"{name} is of {of[name]}, and {self.path} is none: leave it out")
        return self


class PromptOptions(_Strict):
    """Listwise prompts in training.

    depths: documents shown, drawn anew for each batch; 0 is the query alone.
    document_tokens, max_tokens: None takes the model's own.
    order: of the documents shown: as retrieved, shuffled, or either with even chance.
    """

    depths: tuple[Annotated[int, Field(ge=0)], ...] = Field(default=(20,), min_length=1)
    document_tokens: int | None = Field(default=None, ge=1)
    max_tokens: int | None = Field(default=None, ge=16)
    order: Order = "retrieved"


class LoraOptions(_Strict):
    """targets: names of linear layers, as peft takes them; "all-linear" for all."""

    rank: int = Field(default=16, ge=1)
    alpha: int = Field(default=32, ge=1)
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    targets: str | tuple[str, ...] = Field(default="all-linear", min_length=1)


class StageConfig(_Strict):
    """What every stage is told.

    init_from: the model to begin from.
    data: trained on; dev: measured on while training, for early stopping.
    balance: a source is drawn in proportion to its size to this power; 0 is evenly.
    dropout: of the model in training; None leaves its own.
    patience: stop when the dev sets were not better for so many measurements; None: never.
    trainer: of `transformers.TrainingArguments`, see `arguments.training_arguments`.
    """

    init_from: ModelName
    output: Path
    data: tuple[Source, ...] = Field(min_length=1)
    dev: tuple[Source, ...] = ()
    balance: float = Field(default=1.0, ge=0.0)
    dropout: float | None = Field(default=None, ge=0.0, lt=1.0)
    lora: LoraOptions | None = None
    patience: int | None = Field(default=None, ge=1)
    trainer: dict[str, Any] = {}


class EncoderConfig(StageConfig):
    """A stage that trains an encoder.

    pooling, prompts: of the model to begin from, only where its folder does not say; prompts is a
        record or a name of `prompts.NAMED_PROMPTS`.
    """

    pooling: Pooling | None = None
    prompts: Prompts | str | None = None


class ContrastiveConfig(EncoderConfig):
    """Stage 1: InfoNCE over the documents of a batch.

    negatives: hard negatives of a query, drawn in each epoch among its documents with a label of 0
        or below; 0: in-batch negatives only.
    near_positive: a document whose cosine with the query's positive is this or more is no negative
        of that query, by the vectors of the step; None: only copies of its positives are none.
    max_tokens: of a query or document while training; None: the model's own limits, which are
        saved with it in any case.
    chunk_size: texts of one forward pass; the gradient stays that of the whole batch (GradCache).
        None: the batch at once.
    cross_device_negatives: the documents of all processes are negatives, with the gradient of one
        process that holds them all.
    """

    stage: Literal["contrastive"] = "contrastive"
    negatives: int = Field(default=1, ge=0)
    temperature: float = Field(default=0.03, gt=0.0)
    near_positive: float | None = Field(default=None, gt=0.0, le=1.0)
    max_tokens: int | None = Field(default=None, ge=8)
    chunk_size: int | None = Field(default=32, ge=1)
    cross_device_negatives: bool = False


class ListConfig(EncoderConfig):
    """InfoNCE + ranknet_weight * RankNet on lists.

    list_size: documents of a list that are scored: of the relevant and of the others the first,
        up to half of it relevant ones.
    positive: of the InfoNCE: the document with the highest label, or the one that is known to be
        relevant where the labels are a teacher's.
    vectors: a folder that keeps the frozen vectors of documents for the next run; None: each run
        encodes them anew.
    """

    list_size: int = Field(default=16, ge=2)
    positive: Literal["highest", "known"] = "highest"
    vectors: Path | None = None
    ranknet_weight: float = Field(default=2.0, ge=0.0)
    ranknet_temperature: float = Field(default=0.1, gt=0.0)
    info_nce_weight: float = Field(default=1.0, ge=0.0)
    info_nce_temperature: float = Field(default=0.03, gt=0.0)

    @model_validator(mode="after")
    def _trains_something(self) -> Self:
        if self.ranknet_weight == self.info_nce_weight == 0.0:
            raise ValueError("ranknet_weight and info_nce_weight are both 0: nothing is trained")
        return self


class ListwiseConfig(ListConfig):
    """Stage 2 of E2Rank: the losses of `ListConfig` on listwise prompts.

    mode: "joint" trains one set of weights for queries, documents and prompts, and needs a new
        index. "adapter" trains LoRA weights for prompts only, over document vectors that stay.
    query_weight: `a` in `a * query + (1 - a) * listwise`, trained through and saved.
    feedback: see `feedback.Feedback`; trained through and saved. Of frozen documents only.
    """

    stage: Literal["listwise"] = "listwise"
    mode: Literal["joint", "adapter"]
    prompt: PromptOptions = PromptOptions()
    query_weight: float | None = Field(default=None, ge=0.0, lt=1.0)
    feedback: Feedback | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.mode == "adapter" and self.lora is None:
            raise ValueError('mode "adapter" trains LoRA weights: give lora, such as {rank: 16}')
        for name in ("vectors", "feedback"):
            if self.mode == "joint" and getattr(self, name) is not None:
                raise ValueError(f'{name}: in mode "joint" documents are not frozen; leave it out')
        return self


class ResRankConfig(ListConfig):
    """ResRank: the losses of `ListConfig` on lists of one vector per passage.

    mode: "joint" trains encoder and reranker together, end to end, and needs a new index; its
        InfoNCE is of the encoder's own vectors. "frozen" trains the reranker alone, over vectors of
        documents that stay; its InfoNCE holds the query's vector against those vectors.
    init_from: an encoder, or a ResRank, which is trained on: that is how a second stage begins.
    reranker_from: the model that the reranker begins from, which reads queries as the encoder does
        where its folder does not say how; None: the encoder's weights, or the ResRank's reranker.
    layout: how a list is read, see `recipe.ResidualLayout`; None: the ResRank's own, or the
        default.
    gates: what hidden states of the query and of passages are multiplied with at first; ignored
        for a ResRank. Trained with the rest where layout.residual is "gated".
    order: of the passages in training: as retrieved, shuffled, or either with even chance.
    """

    stage: Literal["resrank"] = "resrank"
    mode: Literal["joint", "frozen"]
    reranker_from: ModelName | None = None
    layout: ResidualLayout | None = None
    gates: tuple[float, float] = (1.0, 0.1)
    order: Order = "retrieved"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.mode == "joint" and self.vectors is not None:
            raise ValueError('vectors: in mode "joint" documents are not frozen; leave it out')
        return self


class RankT5Config(StageConfig):
    """A ranker of pairs, by a ranking loss over the scores of a list (arXiv 2210.10634).

    structure: needed only to take the encoder of a T5 alone: "encoder-only". None: what init_from
        is; a T5 is an encoder-decoder, a BERT is encoder-only.
    score_token, pooling: see `recipe.CrossEncoderRecipe`; None takes the model's own.
    max_tokens: of a pair, in training and as saved; None takes the model's own.
    retriever: the encoder that finds candidates, for sources that are mined.
    vectors: a folder that keeps the retriever's vectors of documents for the next run; None: each
        run encodes them anew.
    loss: of `losses`; epsilon: of "poly1".
    targets: what stands for the labels in every loss but "pair", which takes only their order; see
        `ranking.target_labels`. None: "relevant" for a teacher's order, "labels" for grades.
    list_size, candidates: see `stages.cross_encoder`.
    upsample: in the loss, repeat the relevant documents of a list until there are as many as of the
        others; None: for "point_ce" (section 5.1), the only loss that has a use for it.
    chunk_tokens: tokens of one forward pass, padding included; the gradient stays that of the whole
        batch (activation checkpointing), for another forward pass. None: the batch at once.
    """

    stage: Literal["rankt5"] = "rankt5"
    structure: Structure | None = None
    score_token: str | None = None
    pooling: PairPooling | None = None
    max_tokens: int | None = Field(default=None, ge=16)
    retriever: ModelName = "minilm"
    vectors: Path | None = None
    loss: RankingLoss = "softmax"
    epsilon: float = Field(default=1.0, ge=0.0)
    targets: Targets | None = None
    list_size: int = Field(default=36, ge=2)
    candidates: int | None = Field(default=None, ge=1)
    upsample: bool | None = None
    chunk_tokens: int | None = Field(default=None, ge=16)

    @model_validator(mode="after")
    def _consistent(self) -> RankT5Config:
        if self.upsample and self.loss != "point_ce":
            raise ValueError(f'upsample is of the loss "point_ce", not of "{self.loss}"')
        if "epsilon" in self.model_fields_set and self.loss != "poly1":
            raise ValueError(f'epsilon is of the loss "poly1", not of "{self.loss}"')
        if self.targets is not None and self.loss == "pair":
            raise ValueError(
                'targets: the loss "pair" takes only the order of labels; leave it out'
            )
        return self

    @property
    def upsamples(self) -> bool:
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


def adapter_sources(
    base: str | Path,
    data: str | Path,
    output: str | Path,
    dev: str | Path | None,
    *,
    mine: bool,
    corpus: str | Path | None,
) -> dict[str, Any]:
    """What `ADAPTER_CONFIG` lacks; see `training.adapt` for the arguments.

    ValueError for a corpus beside a BEIR folder, which has its own.
    """
    from e2rank_rag.evaluation.collections import Collection

    data = Path(data)
    if corpus is not None and data.is_dir():
        raise ValueError(
            f"corpus {corpus}: {data} is a BEIR folder, which has a corpus of its own; leave the "
            "option out"
        )
    of_file = {"mine": mine, "corpus": corpus}
    measured: list[dict[str, Any]] = []
    if dev is not None:
        measured = [{"path": dev, **({"split": "dev"} if Path(dev).is_dir() else of_file)}]
    elif data.is_dir() and "dev" in Collection.open(data).splits:
        measured = [{"path": data, "split": "dev", "limit": 200}]
    return {
        "init_from": base,
        "output": output,
        "data": [{"path": data, "mine": mine and not data.is_dir(), "corpus": corpus}],
        "dev": measured,
    }


def _validated(kind: type[C], path: Path, settings: dict[str, Any]) -> C:
    try:
        return kind.model_validate(settings)
    except ValidationError as error:
        raise ValueError(f"{path}: {told(error)}") from error
