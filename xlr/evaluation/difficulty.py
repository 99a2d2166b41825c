"""AlpacaEval's table of instruction difficulties, which its length control (`length_controlled_v1`) uses."""

import csv
import math
from pathlib import Path

import torch

from xlr.errors import UserError
from xlr.maths.winrate import Difficulty

_FILE = "df_gamed.csv"
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
    if Path(source).exists() or source.endswith(".csv"):
        return Path(source)
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    try:
        # Look into the cache first: without a network, a download would retry for many seconds.
        known = try_to_load_from_cache(source, _FILE, repo_type="dataset")
        return Path(known if isinstance(known, str) else hf_hub_download(source, _FILE, repo_type="dataset"))
    except (OSError, ValueError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(
            f"{source}: not a file, and {_FILE} cannot be downloaded from a dataset of that name ({reason}); download "
            f"{_FILE} of tatsu-lab/alpaca_eval where there is a network, and pass the file"
        ) from error


def _read(path: Path) -> Difficulty:
    difficulties: dict[int, float] = {}
    features, preferences = [], []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            for name in _COLUMNS:
                if name not in (reader.fieldnames or ()):
                    raise UserError(f"{path}: has no column {name!r}; use AlpacaEval's {_FILE}")
            for row in reader:
                index, difficulty = int(row["index"]), _finite(row["instruction_difficulty"])
                difficulties.setdefault(index, difficulty)
                not_gamed = float(row["not_gamed_baseline"].lower() in ("true", "1", "1.0"))
                features.append([math.tanh(_finite(row["std_delta_len"])), difficulty, not_gamed])
                preferences.append(_finite(row["preference"]))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, TypeError, AttributeError, csv.Error) as error:
        raise UserError(f"{path}:{reader.line_num}: not a row of AlpacaEval's {_FILE} ({error})") from error
    if sorted(difficulties) != list(range(len(difficulties))) or not difficulties:
        raise UserError(f"{path}: its index does not number the instructions from 0; use AlpacaEval's {_FILE}")
    in_order = [difficulties[index] for index in range(len(difficulties))]
    return Difficulty(*(torch.tensor(values, dtype=torch.float64) for values in (in_order, features, preferences)))


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is not a finite number")
    return value
