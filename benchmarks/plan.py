"""Compares the plan of trainings with trainings: memory, time, disk.

    python benchmarks/plan.py WORK [--model models/smollm2-135m-instruct] [--dtype float32 bfloat16]

Trains the align stage of the quickstart for two steps under 12 settings: frozen or cached reference, each kind of
gradient checkpointing, micro-batches of two sizes. Memory is the peak of the training process. Times are the second
step's; the first setting is the probe that corrects the rates, and the others are compared. Disk is the model's folder.
The last line is JSON: the largest error of each, as a share of what was measured.
"""

import argparse
import itertools
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from xlr.pipeline import Stage
from xlr.planning import hardware
from xlr.planning.machines import Machines
from xlr.planning.planner import Planner
from xlr.planning.work import ESTIMATES, Estimate
from xlr.run.context import Context
from xlr.settings.config import Config
from xlr.shipped import RECIPES

STEPS, PAIRS = 2, 64


@dataclass(frozen=True)
class Compared:
    """A setting, as planned and as it ran."""

    name: str
    planned: Estimate
    memory: float
    step_seconds: float
    disk: int


def tree(folder: Path, model: Path, dtype: str, mode: str, recomputed: Any, tokens: int) -> dict[str, Any]:
    """The configuration of a setting."""
    return {
        "run_dir": str(folder),
        "iterations": 1,
        "languages": ["en"],
        "model": {"initial": str(model), "dtype": dtype},
        "prompts": {"path": str(RECIPES / "quickstart" / "prompts")},
        "align": {
            "preferences": str(RECIPES / "quickstart" / "preferences.jsonl"),
            "num_train_epochs": STEPS,
            "global_batch_size": PAIRS,
            "micro_batch_tokens": tokens,
            "gradient_checkpointing": recomputed,
            "reference_mode": mode,
            "ds_config": "zero3_cpu",
            "reference_ds_config": "reference_cpu",
            "save_steps": 0,
            "report_to": [],
        },
    }


def compare(work: Path, name: str, given: dict[str, Any], machine: hardware.Hardware) -> Compared:
    """Plan a setting, and run it."""
    folder = work / name
    shutil.rmtree(folder, ignore_errors=True)
    path = work / f"{name}.yaml"
    path.write_text(yaml.safe_dump(given), encoding="utf-8")
    planner = Planner(Context(Config.model_validate(given)), lambda _: Machines(machine))
    planned = ESTIMATES["align"](planner.setting(Stage("align", 0)))
    stages = ["reference", "align"] if given["align"]["reference_mode"] == "cached" else ["align"]
    for stage in stages:
        iteration = ["--iteration", "0"] if stage == "reference" else []
        subprocess.run([sys.executable, "-m", "xlr", stage, str(path), *iteration], check=True, stdout=sys.stderr)
    rows = [json.loads(line) for line in (folder / "iter0" / "metrics.jsonl").read_text().splitlines()]
    last = rows[-1]
    found = Compared(
        name,
        planned,
        1e9 * max(row["perf/peak_memory_gb"] for row in rows),
        last["num_tokens"] / last["perf/tokens_per_second"],
        sum(file.stat().st_size for file in (folder / "iter0" / "model").rglob("*")),
    )
    shutil.rmtree(folder)
    return found


def error(planned: float, measured: float) -> float:
    """How far a plan is off, as a share of what was measured."""
    return planned / measured - 1


def main() -> None:
    """Run all settings, print a table, and the line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--model", type=Path, default=Path("models/smollm2-135m-instruct"))
    parser.add_argument("--dtype", nargs="+", choices=("float32", "bfloat16"), default=("float32", "bfloat16"))
    parser.add_argument("--tokens", type=int, nargs="+", default=(1024, 4096), help="train.micro_batch_tokens")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    machine = hardware.this_machine()
    errors: dict[str, list[float]] = {"memory_error": [], "time_error": [], "disk_error": []}
    print(f"{'setting':40} {'planned GB':>10} {'GB':>6} {'error':>6}  {'s a step':>9} {'error':>6}  {'disk error':>6}")
    for dtype in arguments.dtype:
        probe = None
        for mode, recomputed, tokens in itertools.product(
            ("frozen", "cached"), (False, "selective", True), arguments.tokens
        ):
            name = f"{dtype}-{mode}-{str(recomputed).lower()}-{tokens}"
            given = tree(arguments.work / name, arguments.model.absolute(), dtype, mode, recomputed, tokens)
            one = compare(arguments.work, name, given, machine)
            step = one.planned.seconds / STEPS
            probe = probe or one.step_seconds / step
            own = {
                "memory_error": error(one.planned.peak, one.memory),
                "time_error": error(probe * step, one.step_seconds),
                "disk_error": error(one.planned.disk, one.disk),
            }
            for key, value in own.items():
                errors[key].append(abs(value))
            print(
                f"{name:40} {one.planned.peak / 1e9:10.2f} {one.memory / 1e9:6.2f} "
                f"{own['memory_error']:+6.0%}  {one.step_seconds:9.2f} {own['time_error']:+6.0%}  "
                f"{own['disk_error']:+6.1%}",
                flush=True,
            )
    print(json.dumps({key: round(max(values), 3) for key, values in errors.items()}))


if __name__ == "__main__":
    main()
