"""The tables of one result of `e2rank bench`, into docs/performance.md.

e2rank bench --full --json bench.json --plots docs/bench
python benchmarks/performance_page.py bench.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from pages import write_into

from e2rank_rag.bench import tables

PAGE = Path(__file__).parent.parent / "docs" / "performance.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("result", type=Path, help="what `e2rank bench --json` wrote")
    arguments = parser.parse_args()
    result = json.loads(arguments.result.read_text(encoding="utf-8"))
    lines = [line for table in tables(result) for line in table.markdown()]
    write_into(PAGE, lines, Path(__file__).name)
    print(f"{len(lines)} lines written into {PAGE}")


if __name__ == "__main__":
    main()
