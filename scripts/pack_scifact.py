"""Make the SciFact folder that ships with the package from a BEIR one.

    python scripts/pack_scifact.py BEIR_SCIFACT_FOLDER e2rank_rag/data/scifact

The corpus keeps `_id`, `title` and `text` of every record, the queries `_id` and `text`, in file
order; the judgements are copied byte for byte. The same input gives the same bytes.
"""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

SPLITS = ("test", "train")


def pack(source: Path, target: Path) -> None:
    """Write corpus.jsonl.gz, queries.jsonl.gz and qrels/ into `target`."""
    (target / "qrels").mkdir(parents=True, exist_ok=True)
    for name, fields in (("corpus", ("_id", "title", "text")), ("queries", ("_id", "text"))):
        lines = []
        with open(source / f"{name}.jsonl", encoding="utf-8") as records:
            for line in records:
                record = json.loads(line)
                kept = {field: record[field] for field in fields}
                lines.append(json.dumps(kept, ensure_ascii=False) + "\n")
        # mtime=0: a gzip header holds the time otherwise.
        packed = gzip.compress("".join(lines).encode(), 9, mtime=0)
        (target / f"{name}.jsonl.gz").write_bytes(packed)
        print(f"{name}: {len(lines)} records, {len(packed)} bytes")
    for split in SPLITS:
        judgements = (source / "qrels" / f"{split}.tsv").read_bytes()
        (target / "qrels" / f"{split}.tsv").write_bytes(judgements)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    pack(Path(sys.argv[1]), Path(sys.argv[2]))
