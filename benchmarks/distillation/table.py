"""Which loss wins where: the records of the other benchmarks as one table.

``python benchmarks/distillation/table.py`` prints Markdown; a record that is not there has no rows.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_RESULTS = Path(__file__).parent.parent / "results"
_TASKS = {
    "distillation_mnist": "MNIST, 400 labels and 3,000 rows without",
    "distillation_fashion_few": "Fashion-MNIST, 400 labels and 59,500 rows without",
    "distillation_fashion_all": "Fashion-MNIST, all 55,000 labels",
    "distillation_tweets": "tweets, all 24,000 labels",
}


def main() -> int:
    """Print the table."""
    print("| task | share of the teacher's work | loss | top-1 % | of the teacher's % [95%] | points over labels alone [95%] |")
    print("|---|---|---|---|---|---|")
    for name, task in _TASKS.items():
        path = _RESULTS / f"{name}.json"
        if path.exists():
            print("\n".join(_rows(task, json.loads(path.read_text(encoding="utf-8")))))
    return 0


def _rows(task: str, record: dict[str, Any]) -> Iterator[str]:
    share = f"1/{1 / record['macs_share']:.0f}"
    lines = sorted(record["losses"], key=lambda line: -line["gain_points"]["mean"])
    for place, line in enumerate(lines):
        kept, gain = (_interval(line[key], scale) for key, scale in (("retention", 100), ("gain_points", 1)))
        first = (task, share) if place == 0 else ("", "")
        print_as = f"**`{line['loss']}`**" if place == 0 else f"`{line['loss']}`"
        right = [seed["top1"] for seed in record["seeds"] if seed["loss"] == line["loss"]]
        yield f"| {first[0]} | {first[1]} | {print_as} | {100 * sum(right) / len(right):.2f} | {kept} | {gain} |"


def _interval(found: dict[str, float], scale: float) -> str:
    mean, low, high = (scale * found[key] for key in ("mean", "low", "high"))
    sign = "+" if scale == 1 else ""
    return f"{mean:{sign}.2f} [{low:{sign}.2f}, {high:{sign}.2f}]"


if __name__ == "__main__":
    sys.exit(main())
