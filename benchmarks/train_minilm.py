"""Trains e2rank-minilm, all-MiniLM-L6-v2 with a listwise adapter, from four open collections.

    python benchmarks/train_minilm.py DATA OUTPUT [--config FILE] [--also NAME]...
        [--candidates dense] [--vectors FOLDER] [key=value]...

DATA holds BEIR folders; OUTPUT gets the model, and OUTPUT-work what is made on the way: MedQuAD
without the answers that LiveQA is judged on, and vectors of documents, which a second run reuses.
Settings are those of e2rank_rag/training/configs/e2rank-minilm.yaml unless given; `--config` trains
another system on the same data (resrank-minilm.yaml, rankt5-minilm.yaml). Trained on
`train` splits of collections under CC BY or ODC-By only, and of those that `--also` names.

The state that is kept is the best on the `dev` splits of two collections whose domains are not
trained on (`DEV`), NFCorpus and WikiQA: a state that is best on what was trained on has learned it
by heart. `--seen` measures the `dev` splits of trained domains too; the mean over all then decides.
Lists hold hybrid candidates, as in a collection with words; `--candidates dense` mines by cosine.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from e2rank_rag.training import train
from e2rank_rag.training.config import read_config

CONFIGS = Path(__file__).parents[1] / "e2rank_rag" / "training" / "configs"
MEDQUAD = "medquad_without_liveqa"
TRAIN = {"scifact": None, "bioasq_snippets": None, "squadshifts_new_wiki": None, MEDQUAD: 5000}
DEV = {"nfcorpus": 150, "wikiqa": None}
SEEN = {"bioasq_snippets": None, "squadshifts_new_wiki": 150, MEDQUAD: 150}


def without_answers(source: Path, answers: Path, target: Path) -> None:
    """The collection without documents whose first 150 letters begin an answer; idempotent.

    Their judgements go too, and with them queries that have no other.
    """
    begins = {_letters(record["text"]) for record in _records(answers / "corpus.jsonl")}
    target.mkdir(parents=True, exist_ok=True)
    shutil.copy(source / "queries.jsonl", target / "queries.jsonl")
    left_out = set()
    with (target / "corpus.jsonl").open("w", encoding="utf-8") as file:
        for record in _records(source / "corpus.jsonl"):
            if _letters(record["text"]) in begins:
                left_out.add(record["_id"])
            else:
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
    (target / "qrels").mkdir(exist_ok=True)
    for path in (source / "qrels").glob("*.tsv"):
        header, *lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if line.split("\t")[1] not in left_out]
        (target / "qrels" / path.name).write_text("".join([header, *kept]), encoding="utf-8")
    print(
        f"{len(left_out)} documents of {source.name} answer questions of {answers.name}: left out"
    )


def _records(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def _letters(text: str) -> str:
    return re.sub(r"\W+", "", text.lower())[:150]


def sources(
    data: Path, work: Path, candidates: str, also: Sequence[str] = (), *, seen: bool = False
) -> dict[str, object]:
    """The settings `data` and `dev`, with MedQuAD as `work` has it.

    candidates: "dense" or "hybrid", see `config_blocks.Source`. also: more collections to train
    on. seen: measure trained domains too.
    """
    without_answers(data / "medquad", data / "liveqa_med", work / MEDQUAD)

    def split(names: Mapping[str, int | None], split: str) -> list[dict[str, object]]:
        return [
            {
                "path": (work if name == MEDQUAD else data) / name,
                "split": split,
                "limit": limit,
                "candidates": candidates,
            }
            for name, limit in names.items()
        ]

    return {
        "data": split(TRAIN | dict.fromkeys(also), "train"),
        "dev": split(DEV | SEEN if seen else DEV, "dev"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("settings", nargs="*")
    parser.add_argument("--config", type=Path, default=CONFIGS / "e2rank-minilm.yaml")
    parser.add_argument("--vectors", type=Path, help="keep documents' vectors here")
    parser.add_argument("--also", action="append", default=[], help="a collection of DATA")
    parser.add_argument("--candidates", choices=["dense", "hybrid"], default="hybrid")
    parser.add_argument("--seen", action="store_true", help="measure trained domains too")
    arguments = parser.parse_intermixed_args()
    data, work = arguments.data, arguments.output.with_name(f"{arguments.output.name}-work")
    read = sources(data, work, arguments.candidates, arguments.also, seen=arguments.seen)
    given = {"output": arguments.output, **read}
    config = read_config(arguments.config, arguments.settings, given)
    if config.stage == "rankt5" or config.mode in ("adapter", "frozen"):
        given["vectors"] = arguments.vectors or work / "vectors"
    print(train(read_config(arguments.config, arguments.settings, given)))


if __name__ == "__main__":
    main()
