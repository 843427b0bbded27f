"""Blocks of a configuration: sources of data, prompts in training, LoRA layers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from e2rank_rag.training.settings import as_written
from e2rank_rag.words import Bm25

Order = Literal["retrieved", "shuffled", "mixed"]

MINING = ("depth", "first_negative", "candidates", "language")
"""Settings of a source that say how its lists are mined."""


class Strict(BaseModel):
    """A frozen record with strict types; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _as_written(cls, value: Any, info: ValidationInfo) -> Any:
        return as_written(value, cls.model_fields[str(info.field_name)].annotation)


class Source(Strict):
    """Examples to train or measure on."""

    path: Path = Field(
        description="A BEIR folder, whose lists are mined with the base, or a file of examples."
    )
    split: str = Field(default="train", description="The split of a folder.")
    corpus: Path | None = Field(
        default=None,
        description="A file of documents: texts for examples that hold ids only; with `mine`, more "
        "documents to mine lists from.",
    )
    limit: int | None = Field(
        default=None,
        ge=1,
        description="Take at most this many examples, drawn by the seed; in a file whose lines "
        "name a `source`, of each source. None: all.",
    )
    mine: bool = Field(
        default=False,
        description="For a file of pairs or triples: mine lists from all its documents and the "
        "corpus, with its labels as judgements. False: its lists are taken as they are.",
    )
    depth: int = Field(default=100, ge=2, description="Documents of a mined list.")
    candidates: Literal["dense", "hybrid"] = Field(
        default="dense",
        description='What a mined list holds: "dense", the nearest documents by cosine; "hybrid", '
        "the first of the reciprocal rank fusion of these and of the best by BM25.",
    )
    language: str | None = Field(
        default="english",
        description="Language of the words of hybrid candidates, one of `words.LANGUAGES`. None: "
        "words as they are, without stemming and stop words.",
    )
    first_negative: int = Field(
        default=0,
        ge=0,
        description="Leave out unjudged documents that were retrieved before this place, counted "
        "from 0.",
    )
    task: str | None = Field(
        default=None,
        description="The instruction of queries that name none: a name in `prompts.TASKS`, or a "
        "sentence, which is used for plain queries only. None: lines whose `source` is in "
        "`prompts.SOURCE_TASKS` have that one's. Cross-encoders have no instruction.",
    )

    @field_validator("language")
    @classmethod
    def _known(cls, language: str | None) -> str | None:
        return Bm25(language=language).language

    @model_validator(mode="after")
    def _used(self) -> Self:
        """ValueError for a setting that would not be used."""
        of = {}
        if self.path.is_dir():
            of = {"corpus": "a file of examples", "mine": "a file of examples"}
        elif self.path.is_file():
            of = {"split": "a BEIR folder"}
            if not self.mine:
                of |= dict.fromkeys(MINING, "lists that are mined")
        for name in self.model_fields_set & of.keys():
            if getattr(self, name):
                raise ValueError(
                    f"{name} is for {of[name]}, which {self.path} is not: leave it out"
                )
        if self.language != "english" and self.candidates == "dense":
            raise ValueError('language is for hybrid candidates: set candidates to "hybrid" too')
        return self


class PromptOptions(Strict):
    """Listwise prompts in training."""

    depths: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        default=(20,),
        min_length=1,
        description="Numbers of documents that a prompt shows; one is drawn for each batch, and 0 "
        "is the query alone.",
    )
    document_tokens: int | None = Field(
        default=None, ge=1, description="Limit of a document in a prompt. None: the model's."
    )
    max_tokens: int | None = Field(
        default=None, ge=16, description="Limit of a prompt. None: the model's."
    )
    order: Order = Field(
        default="retrieved",
        description="Order of the documents: as retrieved, shuffled, or mixed: either, with even "
        "chance.",
    )
    dropout: float = Field(
        default=0.0,
        ge=0.0,
        lt=1.0,
        description="Chance with which each document of a prompt is left out.",
    )


class LoraOptions(Strict):
    """LoRA layers."""

    rank: int = Field(default=16, ge=1, description="Rank of the matrices.")
    alpha: int = Field(default=32, ge=1, description="Scale: the update counts alpha / rank.")
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0, description="Dropout before the layers.")
    targets: str | tuple[str, ...] = Field(
        default="all-linear",
        min_length=1,
        description='Names of linear layers, as peft takes them; "all-linear" for all.',
    )
