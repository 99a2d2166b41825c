"""AlpacaEval's table of instruction difficulties, which its length control (`length_controlled_v1`) uses."""

import csv
import io
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from xlr.errors import UserError
from xlr.foreign.texts import MIB, brief, read, reason
from xlr.maths.winrate import Difficulty

_FILE = "df_gamed.csv"
_MOST_BYTES = 64 * MIB  # 500 times AlpacaEval's table
_LARGEST = 1e6
_TRUTHS = {"true": 1.0, "1": 1.0, "1.0": 1.0, "false": 0.0, "0": 0.0, "0.0": 0.0}
_COLUMNS = ("index", "preference", "std_delta_len", "instruction_difficulty", "not_gamed_baseline")


def load(source: str | None) -> Difficulty | None:
    """Load the table: the difficulty of each instruction, and judgements of two gamed baselines.

    Args:
        source: a CSV file, a dataset on the Hugging Face hub with `df_gamed.csv`, or None for no table.

    Raises:
        UserError: the table cannot be read or downloaded, or it is not AlpacaEval's.
    """
    return None if source is None else _read(_file(source))


def _file(source: str) -> Path:
    if os.path.lexists(source) or source.endswith(".csv"):
        return Path(source)
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    try:
        # Look into the cache first: without a network, a download would retry for many seconds.
        known = try_to_load_from_cache(source, _FILE, repo_type="dataset")
        return Path(known if isinstance(known, str) else hf_hub_download(source, _FILE, repo_type="dataset"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{source}: not a file, and {_FILE} cannot be downloaded from a dataset of that name ({reason(error)}); "
            f"download {_FILE} of tatsu-lab/alpaca_eval where there is a network, and pass the file"
        ) from error


def _read(path: Path) -> Difficulty:
    difficulties: dict[int, float] = {}
    features, preferences = [], []
    reader = csv.DictReader(io.StringIO(read(path, _MOST_BYTES), newline=""))
    try:
        _require_columns(path, list(reader.fieldnames or ()))
        for row in reader:
            index, difficulty = _index(row), _number(row, "instruction_difficulty")
            if difficulties.setdefault(index, difficulty) != difficulty:
                raise ValueError(f"instruction {index} has another instruction_difficulty above")
            features.append([math.tanh(_number(row, "std_delta_len")), difficulty, _truth(row, "not_gamed_baseline")])
            preferences.append(_number(row, "preference"))
    except (ValueError, csv.Error) as error:
        line = reader.line_num + isinstance(error, csv.Error)  # csv fails before it counts the line
        raise UserError(f"{path}:{line}: not a row of AlpacaEval's {_FILE} ({error}); get the table again") from error
    if sorted(difficulties) != list(range(len(difficulties))) or not difficulties:
        raise UserError(f"{path}: its index does not number the instructions from 0; use AlpacaEval's {_FILE}")
    in_order = [difficulties[index] for index in range(len(difficulties))]
    return Difficulty(*(torch.tensor(values, dtype=torch.float64) for values in (in_order, features, preferences)))


def _require_columns(path: Path, names: list[str]) -> None:
    for name in _COLUMNS:
        if names.count(name) != 1:
            what = f"has no column {name!r}" if name not in names else f"has the column {name!r} more than once"
            raise UserError(f"{path}: {what}; use AlpacaEval's {_FILE}")


def _index(row: Mapping[str, Any]) -> int:
    text = str(row["index"])
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise ValueError(f"index is {brief(text)}, not a number from 0")
    return int(text)


def _number(row: Mapping[str, Any], name: str) -> float:
    try:
        value = float(row[name] or "")  # None in a row that is too short
    except ValueError:
        value = math.nan
    if not abs(value) <= _LARGEST:
        raise ValueError(f"{name} is {brief(row[name])}, not a number within ±{_LARGEST:g}")
    return value


def _truth(row: Mapping[str, Any], name: str) -> float:
    truth = _TRUTHS.get(str(row[name]).lower())
    if truth is None:
        raise ValueError(f"{name} is {brief(row[name])}, not true or false")
    return truth
