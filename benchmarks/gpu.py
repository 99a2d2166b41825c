"""The first hour on one GPU: whether xlr's kernels, scoring and training compute there what they should, and how fast.

    python benchmarks/gpu.py --list
    python benchmarks/gpu.py [--checks 1 2 6 C] [--size tiny|1b|8b] [--work FOLDER]

Fourteen checks in three parts: A kernels, B scoring, C training with DeepSpeed on one rank. Each prints a line of JSON
as soon as it is done. A check that fails or crashes does not stop the others. The last line counts them (what only
informs has passed); the exit code is 1 if one failed. Weights are random. Needs neither ray nor vllm nor lingua, and
checks that it imported none of them. `tiny` is for CPUs. `8b` trains the width of Llama3-8B with eight layers. Without
CUDA, what only GPUs have is not run. Libraries print to standard error, compiled ones also to standard output.
"""

import argparse
import contextlib
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from gpuplan.plan import Check, NotRunError, Setup, release

from xlr.model.gpus import set_up_gpus

with contextlib.redirect_stdout(sys.stderr):  # DeepSpeed prints when it is imported
    from gpuplan import kernels, scoring, training

PARTS: dict[str, dict[int, Check]] = {"A": kernels.CHECKS, "B": scoring.CHECKS, "C": training.CHECKS}
CHECKS = {number: check for part in PARTS.values() for number, check in part.items()}
NOT_NEEDED = ("ray", "vllm", "lingua")
OUTCOMES = {"pass": "passed", "info": "passed", "fail": "failed", "not run": "not_run"}


def chosen(names: list[str]) -> list[int]:
    """The numbers of the checks that were asked for, in the order of the plan."""
    asked: set[int] = set()
    for name in names:
        asked |= PARTS[name].keys() if name in PARTS else {int(name)}
    return sorted(asked)


def examine(number: int, setup: Setup) -> dict[str, Any]:
    """One check's line."""
    check, begun = CHECKS[number], time.monotonic()
    line: dict[str, Any] = {"check": number, "name": check.__name__, "size": setup.size}
    try:
        with contextlib.redirect_stdout(sys.stderr):
            found = check(setup)
        line |= {"verdict": found.verdict, "limit": found.limit, "figures": _rounded(found.figures)}
    except NotRunError as why:
        line |= {"verdict": "not run", "why": str(why)}
    except Exception as error:  # whatever one check does, the others run
        line |= {"verdict": "fail", "error": f"{type(error).__name__}: {error}"}
    return line | {"seconds": round(time.monotonic() - begun, 1)}


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(own) for name, own in value.items()}
    if isinstance(value, list):
        return [_rounded(own) for own in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def imports() -> dict[str, Any]:
    """The line about what was imported."""
    found = [name for name in NOT_NEEDED if name in sys.modules]
    return {
        "check": "imports",
        "limit": f"none of {NOT_NEEDED}",
        "verdict": "fail" if found else "pass",
        "found": found,
    }


def run(numbers: list[int], setup: Setup) -> int:
    """Run checks, print their lines and the last one; returns the number that failed."""
    outcomes = dict.fromkeys(OUTCOMES.values(), 0)

    def tell(line: dict[str, Any]) -> None:
        outcomes[OUTCOMES[line["verdict"]]] += 1
        print(json.dumps(line), flush=True)

    for number in numbers:
        tell(examine(number, setup))
        release(setup)
    tell(imports())
    print(json.dumps(outcomes), flush=True)
    return outcomes["failed"]


def main() -> None:
    """List or run the checks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="print the checks")
    names = [*PARTS, *map(str, CHECKS)]
    parser.add_argument("--checks", nargs="+", choices=names, default=list(PARTS), metavar="CHECK")
    parser.add_argument("--size", choices=("tiny", "1b", "8b"), help="by default 8b on a GPU, else tiny")
    parser.add_argument("--work", type=Path, help="folder for models and checkpoints; by default a temporary one")
    arguments = parser.parse_args()
    if arguments.list:
        for part, checks in PARTS.items():
            for number, check in checks.items():
                print(f"{part} {number:2} {str(check.__doc__).split(': ', 1)[1].splitlines()[0]}")
        return
    set_up_gpus()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as folder:
        work = arguments.work or Path(folder)
        work.mkdir(parents=True, exist_ok=True)
        size = arguments.size or ("8b" if device.type == "cuda" else "tiny")
        failed = run(chosen(arguments.checks), Setup(size, device, work.absolute()))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
