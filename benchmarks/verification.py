"""What it costs to compare an artefact's digests before a stage reads it, as a share of that stage's time.

    python benchmarks/verification.py WORK [--gigabytes 1]

The stage is `pair`, which does least with each byte that it reads: it reads scores, chooses, and writes pairs. The
digests are computed from the file's content, as on the first read; later reads of the same file recall them.
"""

import argparse
import json
import random
import time
from pathlib import Path

from xlr.records import Pair, Prompt, Score
from xlr.rewarding.pairs import choose
from xlr.run.artifact import Artifact
from xlr.run.files import remove
from xlr.run.manifests import rows_of, verified
from xlr.run.rows import write_rows, write_shards
from xlr.settings.pairconfig import PairConfig
from xlr.terminal.progress import Clock

SAMPLES, CHARACTERS = 10, 1500
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 ."  # 64: 6 bits, hardly compressible


def write(folder: Path, gigabytes: float) -> None:
    """Write scores of about this size, with a manifest."""
    generator = random.Random(0)
    # A row holds its text twice: as the response and as the scored text.
    prompts = round(gigabytes * 1e9 / (2 * 0.76 * CHARACTERS * SAMPLES))
    rows = []
    for number in range(prompts * SAMPLES):
        text = "".join(generator.choices(LETTERS, k=CHARACTERS))
        reward = generator.gauss(0, 1)
        prompt, sample = divmod(number, SAMPLES)
        row = Score(str(prompt), "en", sample, text, "stop", text, reward - 9, -9.0, reward, 400, len(text), "en", 0.0)
        rows.append(row)
    folder.mkdir(parents=True)
    write_shards(folder, "en", Score, rows)
    Artifact(folder.parents[1], folder, "score", {}, {}).finish(len(rows), {}, Clock())


def main() -> None:
    """Print the seconds of each part, and the line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    arguments = parser.parse_args()
    folder = arguments.work / "iter1" / "scores"
    if not folder.exists():
        write(folder, arguments.gigabytes)
    size = sum(file.stat().st_size for file in folder.glob("*.parquet"))

    begun = time.perf_counter()
    verified(folder, fresh=True)
    verifying = time.perf_counter() - begun

    begun = time.perf_counter()
    rows = rows_of(folder, Score)
    prompts = [Prompt(row.id, row.lang, "?") for row in rows if row.sample == 0]
    found = choose(PairConfig(), rows, prompts)
    pairs = [Pair(p.id, p.lang, [], [], [], c.reward, r.reward) for p, c, r in found.pairs]
    write_rows(arguments.work / "pairs.parquet", Pair, pairs)
    stage = time.perf_counter() - begun
    remove(arguments.work / "pairs.parquet")
    print(f"{size / 1e9:.2f} GB, {len(rows):,} rows: verified in {verifying:.2f} s, paired in {stage:.2f} s")
    rate = size / 1e9 / verifying
    print(json.dumps({"share_of_pairing": round(verifying / stage, 4), "verified_gb_per_second": round(rate, 2)}))


if __name__ == "__main__":
    main()
