"""Rows of annotations in AlpacaEval's format, for tests."""

import json
from pathlib import Path
from typing import Any

# figures.json holds the results of alpaca_eval's get_length_controlled_winrate for graded.json and hard.json, with the
# df_gamed.csv of this folder in place of its own.
GOLDEN = Path(__file__).parents[1] / "golden" / "winrate"
Row = dict[str, Any]


def write(path: Path, rows: object) -> Path:
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def row(number: int, preference: float | None, lang: str = "", **values: Any) -> Row:
    plain = {
        "instruction": f"Say {number}.",
        "output_1": "a" * (10 + number * 7 % 11),
        "output_2": "b" * (12 + number * 5 % 13),
        "preference": preference,
        "generator_1": "base",
        "generator_2": "model",
        "lang": lang,
    }
    return plain | values


def swapped(one: Row, preference: float | None) -> Row:
    """The same two answers in the other order."""
    return one | {
        "output_1": one["output_2"],
        "output_2": one["output_1"],
        "generator_1": one["generator_2"],
        "generator_2": one["generator_1"],
        "preference": preference,
    }


GOOD = [row(0, 2), row(1, 1.3), row(2, 1)]
