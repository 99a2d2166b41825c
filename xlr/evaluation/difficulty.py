"""AlpacaEval's table of how difficult its instructions are, by which it refines its length control."""

import csv
import math
from pathlib import Path

import torch

from xlr.errors import UserError
from xlr.maths.winrate import Difficulty

_FILE = "df_gamed.csv"
_COLUMNS = ("index", "preference", "std_delta_len", "instruction_difficulty", "not_gamed_baseline")


def load(source: str | None) -> Difficulty | None:
    """The table: two gamed baselines' judgements with the instructions' difficulty.

    Args:
        source: a file, a dataset of the hub that has `df_gamed.csv`, or None where no table is wanted.

    Raises:
        UserError: it cannot be had, or is another table; naming line and column.
    """
    return None if source is None else _read(_file(source))


def _file(source: str) -> Path:
    if Path(source).exists() or source.endswith(".csv"):
        return Path(source)
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    try:
        known = try_to_load_from_cache(source, _FILE, repo_type="dataset")  # else a node without network waits for one
        return Path(known if isinstance(known, str) else hf_hub_download(source, _FILE, repo_type="dataset"))
    except (OSError, ValueError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(
            f"{source}: no file, and no dataset on the hub whose {_FILE} can be had from here ({reason}); fetch "
            f"tatsu-lab/alpaca_eval's {_FILE} where there is a network, and name the file"
        ) from error


def _read(path: Path) -> Difficulty:
    difficulties: dict[int, float] = {}
    features, preferences = [], []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            for name in _COLUMNS:
                if name not in (reader.fieldnames or ()):
                    raise UserError(f"{path}: has no column {name!r}; --difficulty takes AlpacaEval's {_FILE}")
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
        raise UserError(f"{path}: its index does not count the instructions from 0; take AlpacaEval's {_FILE}")
    in_order = [difficulties[index] for index in range(len(difficulties))]
    return Difficulty(*(torch.tensor(values, dtype=torch.float64) for values in (in_order, features, preferences)))


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is not a finite number")
    return value
