"""Measures what a sweep saves: six variants of the quickstart, two rewards times three pairings, against six runs.

The model is trained on English preferences, samples and is evaluated once; scores are computed once for each reward;
pairs, training and evaluation for each variant. What six runs would take is the sum of the stages' measured times, each
counted in every variant that needs it, and what the sweep takes beside its stages: six starts and a report. The last
line is JSON; see README.md for figures.

    python benchmarks/sweep.py WORK
"""

import argparse
import json
import time
from pathlib import Path

from xlr.foreign import yamlfiles
from xlr.run.manifests import read_manifest
from xlr.stages import STAGES
from xlr.sweep import execution, report
from xlr.sweep.variants import open_sweep, recorded_runs

BASE = {
    "extends": "quickstart",
    "iterations": 1,
    "prompts": {"limit": 12},
    "generate": {"num_samples": 10},  # as many as the method takes; with two, all pairings choose the same
    "train": {"max_steps": 2},
    # The accuracy of the reward does not differ between the variants' start, and takes as long as all their training.
    "evaluate": {"preferences": None, "prompts": {"path": "{recipes}/quickstart/heldout", "limit": 12}},
}
GRID = {"score.reward": ["crosslingual", "multilingual"], "pair.rejected": ["worst", "median", "nearest_mean"]}


def seconds(run: Path) -> dict[str, tuple[str, float]]:
    """Each finished artefact of a run: its manifest's seal, and the seconds of its stage."""
    found = {}
    for folder in sorted(run.glob("iter*")):
        for name in {kind.artefact for kind in STAGES}:
            if manifest := read_manifest(folder / name):
                found[f"{folder.name}/{name}"] = (manifest["seal"], manifest["seconds"])
    return found


def main() -> None:
    """Run the sweep, and print its time beside that of six runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="a new folder")
    work = parser.parse_args().work
    work.mkdir(parents=True)
    (work / "base.yaml").write_text(yamlfiles.dump(BASE), encoding="utf-8")
    sweep = {"base": "base.yaml", "sweep_dir": str(work / "runs"), "grid": GRID}
    (work / "sweep.yaml").write_text(yamlfiles.dump(sweep), encoding="utf-8")
    begun = time.monotonic()
    opened = open_sweep(work / "sweep.yaml")
    failed = execution.run(opened)
    assert not failed, failed
    report.make(*recorded_runs(opened.folder))
    together = time.monotonic() - begun
    stages = [seconds(run) for run in recorded_runs(opened.folder)[1]]
    alone = sum(took for one in stages for _, took in one.values())
    made = {seal: took for one in stages for seal, took in one.values()}
    print(f"{len(stages)} variants, {sum(map(len, stages))} artefacts, {len(made)} made")
    beside = together - sum(made.values())
    print(f"stages: {sum(made.values()):.0f} s, one by one {alone:.0f} s; beside them {beside:.0f} s")
    print(json.dumps({"cost_ratio": round(together / (alone + beside), 3)}))


if __name__ == "__main__":
    main()
