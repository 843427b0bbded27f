"""Four documents, two queries, and what the commands print of them."""

from __future__ import annotations

import json

RECORDS = [
    {"_id": "cats", "text": "cats purr, cats sleep, cats purr again", "year": 2001, "kind": "pet"},
    {"_id": "dogs", "text": "dogs bark, dogs dig, dogs bark again", "year": 2005, "kind": "pet"},
    {"_id": "ferry", "title": "Ferries", "text": "A ferry crosses the strait.", "year": 2010},
    {"_id": "bread", "text": "Bread rises because yeast turns sugar into gas.", "kind": "food"},
]
IDS = [record["_id"] for record in RECORDS]
TEXTS = ["Ferries " + r["text"] if "title" in r else r["text"] for r in RECORDS]
QUERIES = {"q1": "Which animals purr?", "q2": "When does the ferry cross?"}


def found(output):
    return [record["id"] for record in json.loads(output)]


def one_line(err):
    lines = [line for line in err.splitlines() if line]
    return len(lines) == 1 and lines[0].startswith("error: ")
