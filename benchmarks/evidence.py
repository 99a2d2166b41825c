"""Is the reward of an English-aligned model right in other languages? Measured on real answers of known rank.

    python benchmarks/evidence.py WORK DATA [--model models/smollm2-135m-instruct] [--seeds 1 2 3]

DATA is a folder of files `{lang}.jsonl` with the columns id, prompt, chosen and rejected. Aligns the model on English
pairs with `xlr align`, and measures its reward on pairs of other ids with `xlr evaluate`, under the English instruction
and under the one in the answer's own language. As the better answers are nearly always longer there, all answers are
cut at a sentence's end, and the pairs to train on are chosen so that length tells nothing. Prints a table, and JSON as
the last line.
"""

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

import yaml

from xlr.maths.shares import share_interval
from xlr.run.files import read_json, write_text

LANGUAGES = ("en", "es", "ru", "de", "fr")
_END = re.compile(r"(?<!\d)[.!?](?=\s|$)|\n")
_LEAST = 80  # characters that must be left of an answer


def cut(text: str, longest: int) -> str:
    """The text up to its last sentence end within so many characters; empty if little would be left."""
    ends = [match.end() for match in _END.finditer(text[: longest + 1])]
    return text[: ends[-1]].strip() if ends and ends[-1] >= _LEAST else ""


def pairs(data: Path, lang: str, longest: int) -> list[dict[str, Any]]:
    """The pairs of a language with cut answers, without those of which little would be left."""
    rows = map(json.loads, (data / f"{lang}.jsonl").read_text(encoding="utf-8").splitlines())
    found = [row | {side: cut(row[side], longest) for side in ("chosen", "rejected")} for row in rows]
    return [row for row in found if row["chosen"] and row["rejected"]]


def neutral(rows: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """At most `count` pairs; in one half the better answer is longer, in the other shorter, in turn."""
    longer = [row for row in rows if len(row["chosen"]) > len(row["rejected"])]
    shorter = [row for row in rows if len(row["chosen"]) < len(row["rejected"])]
    most = min(len(longer), len(shorter), count // 2)
    return [row for both in zip_longest(longer[:most], shorter[:most]) for row in both]


def prepare(arguments: argparse.Namespace) -> int:
    """Write the pairs; return the number of those to train on."""
    english = pairs(arguments.data, "en", arguments.characters)
    train = neutral([row for row in english if row["id"] <= arguments.last_id], arguments.pairs)
    _write(arguments.work / "train.jsonl", ({name: row[name] for name in _COLUMNS} for row in train))
    tests = {
        lang: [row for row in pairs(arguments.data, lang, arguments.characters) if row["id"] > arguments.last_id]
        for lang in LANGUAGES
    }
    ids = set.intersection(*({row["id"] for row in rows} for rows in tests.values()))
    for lang, rows in tests.items():
        kept = [{"id": str(row["id"]), **{name: row[name] for name in _COLUMNS}} for row in rows if row["id"] in ids]
        _write(arguments.work / "test" / f"{lang}.jsonl", iter(kept))
    return len(train)


_COLUMNS = ("prompt", "chosen", "rejected")


def _write(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    write_text(path, "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows))


def configuration(arguments: argparse.Namespace, seed: int) -> Path:
    """Write the configuration of one seed."""
    tree = {
        "run_dir": str(arguments.work / f"seed{seed}"),
        "seed": seed,
        "iterations": 1,
        "languages": ["en", "es"],  # nothing is sampled
        "model": {"initial": str(arguments.model.resolve())},
        "prompts": {"path": "{recipes}/quickstart/prompts"},
        "align": {
            "preferences": str(arguments.work / "train.jsonl"),
            "learning_rate": 2e-5,
            "num_train_epochs": 2,
            "global_batch_size": 16,
            "micro_batch_tokens": 2048,
            "ds_config": "zero3_cpu",
            "reference_ds_config": "reference_cpu",
            "save_steps": 0,
        },
        "score": {"batch_tokens": 2048},
        "ray": {"actors": 1, "cpus_per_actor": arguments.threads},
        "evaluate": {"preferences": str(arguments.work / "test")},
    }
    path = arguments.work / f"seed{seed}.yaml"
    write_text(path, yaml.safe_dump(tree))
    return path


def measured(arguments: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Language -> kind of instruction -> figures of the reward of the model aligned with one seed."""
    config = configuration(arguments, seed)
    for command in (["align", str(config)], ["evaluate", str(config), "--iteration", "0"]):
        subprocess.run([sys.executable, "-m", "xlr", *command], check=True)
    found = read_json(arguments.work / f"seed{seed}" / "iter0" / "eval.manifest.json")["facts"]["preferences"]
    assert isinstance(found, dict)
    return found


def main() -> None:
    """Print accuracies in percent with their 95 % intervals, by seed, language and kind of instruction."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", type=Path, default=Path("models/smollm2-135m-instruct"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--pairs", type=int, default=150, help="English pairs to train on, at most")
    parser.add_argument("--last-id", type=int, default=300, help="pairs up to this id are trained on")
    parser.add_argument("--characters", type=int, default=300, help="of an answer, at most")
    parser.add_argument("--threads", type=int, default=2, help="CPUs of the worker that scores")
    arguments = parser.parse_args()
    print(f"{prepare(arguments)} English pairs to train on", flush=True)
    found = {seed: measured(arguments, seed) for seed in arguments.seeds}
    print("seed language instruction pairs accuracy interval length-controlled longer-is-better")
    for seed, by_language in found.items():
        for lang, by_mode in by_language.items():
            for mode, own in by_mode.items():
                low, high = share_interval(own["accuracy"], own["pairs"])
                print(
                    f"{seed} {lang} {mode} {own['pairs']} {100 * own['accuracy']:.0f} "
                    f"({100 * low:.0f}-{100 * high:.0f}) {100 * own['length_controlled_accuracy']:.0f} "
                    f"{100 * own['longer_accuracy']:.0f}"
                )
    print(json.dumps({str(seed): own for seed, own in found.items()}))


if __name__ == "__main__":
    main()
