"""How busy vLLM engines are kept by xlr's plan of sampling tasks: a simulation that takes seconds.

    python benchmarks/sampling_plan.py [--engines 8] [--slots 1024] [--batch-size 4096] [--mean 500]

Draws response lengths for 1,500 prompts a language and ten samples each, lets xlr divide them into tasks, and simulates
engines that take one task after another. Efficiency is the time that engines would need if they never drained, divided
by the simulated time. Plans are compared without knowledge of lengths (iteration 1), and with each prompt's mean in the
iteration before. The last line is JSON; see README.md for figures.
"""

import argparse
import heapq
import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from xlr.maths.batching import Batch
from xlr.records import Prompt
from xlr.sampling import samplingplan
from xlr.settings.generateconfig import GenerateConfig

PROMPTS, SAMPLES, LONGEST = 1500, 10, 2400
# Mean length by language, in shares of --mean: tokenizers need more tokens for some languages than for others.
LANGUAGES = {
    "en": 0.7,
    "de": 0.9,
    "es": 0.8,
    "ru": 1.2,
    "bn": 1.3,
    "fr": 0.9,
    "zh": 1.0,
    "ja": 1.1,
    "th": 1.2,
    "sw": 0.9,
}
SIGMA, SHARED = 0.6, 0.6  # sd of a length's logarithm; share of its variance that a prompt's samples have in common
# Milliseconds of a decoding step, and of each response in it: 8B in bfloat16 on an H100 (estimate, see README.md).
STEP_MS, ROW_MS = 7.0, 0.055


@dataclass(frozen=True)
class Drawn:
    """The responses of an iteration."""

    wanted: list[tuple[Prompt, int]]
    lengths: list[int]
    expected: dict[Prompt, float]
    """Mean length of each prompt's responses in the iteration before."""


def draw(mean: float, rng: random.Random) -> Drawn:
    """Lognormal lengths whose mean depends on language and prompt."""
    found = Drawn([], [], {})
    for lang, share in LANGUAGES.items():
        for number in range(PROMPTS):
            prompt, effect = Prompt(str(number), lang, ""), rng.gauss(0, 1)

            def length(center: float = math.log(mean * share) - SIGMA**2 / 2, effect: float = effect) -> int:
                noise = math.sqrt(SHARED) * effect + math.sqrt(1 - SHARED) * rng.gauss(0, 1)
                return min(max(int(math.exp(center + SIGMA * noise)), 1), LONGEST)

            found.expected[prompt] = sum(length() for _ in range(SAMPLES)) / SAMPLES
            found.wanted.extend((prompt, sample) for sample in range(SAMPLES))
            found.lengths.extend(length() for _ in range(SAMPLES))
    return found


def step_ms(rows: int) -> float:
    """Milliseconds of a decoding step with this many responses."""
    return STEP_MS + ROW_MS * rows


def task_ms(lengths: Sequence[int], slots: int) -> float:
    """Time of a task in an engine that decodes `slots` responses at a time and starts the next as one ends."""
    ends = list(lengths[:slots])
    heapq.heapify(ends)
    now, elapsed = 0, 0.0
    for length in lengths[slots:]:
        end = ends[0]
        elapsed += (end - now) * step_ms(len(ends))
        now = end
        heapq.heapreplace(ends, end + length)
    while ends:
        rows = len(ends)
        end = heapq.heappop(ends)
        elapsed += (end - now) * step_ms(rows)
        now = end
    return elapsed


def efficiency(tasks: Sequence[Sequence[int]], engines: int, slots: int) -> float:
    """Time without any draining, over simulated time."""
    free = [0.0] * engines
    for lengths in tasks:
        heapq.heapreplace(free, free[0] + task_ms(lengths, slots))
    tokens = sum(map(sum, tasks))
    return tokens / slots * step_ms(slots) / engines / max(free)


def plans(drawn: Drawn, batch_size: int) -> dict[str, list[Batch]]:
    """The plans that are compared: name -> batches."""
    generate = GenerateConfig(backend="vllm", num_samples=SAMPLES, batch_size=batch_size)
    items = range(len(drawn.wanted))

    def planned(expected: dict[Prompt, float]) -> list[Batch]:
        blocks = samplingplan.plan(drawn.wanted, generate, lambda _: 0, expected)
        return [batch for own in blocks.values() for batch in own]

    return {
        "in the order of the prompts": [[*items[start : start + batch_size]] for start in items[::batch_size]],
        "planned, lengths unknown": planned({}),
        "planned, lengths learnt": planned(drawn.expected),
    }


def main() -> None:
    """Print a table of efficiencies, and those of the chosen setting as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", type=int, nargs="+", default=[8, 16, 32, 64])
    parser.add_argument("--slots", type=int, default=1024, help="generate.max_num_seqs")
    parser.add_argument("--batch-size", type=int, nargs="+", default=[4096, 2048, 1024], help="generate.batch_size")
    parser.add_argument("--mean", type=float, default=500, help="mean tokens of a response")
    arguments = parser.parse_args()
    drawn = draw(arguments.mean, random.Random(0))
    print(f"{len(drawn.wanted)} responses, {sum(drawn.lengths) / len(drawn.lengths):.0f} tokens each on average")
    print(f"{'engines':>7} {'batch_size':>10}  efficiency")
    last: dict[str, float] = {}
    for batch_size in arguments.batch_size:
        tasks = {
            name: [[drawn.lengths[item] for item in batch] for batch in batches]
            for name, batches in plans(drawn, batch_size).items()
        }
        for engines in arguments.engines:
            found = {name: efficiency(own, engines, arguments.slots) for name, own in tasks.items()}
            print(
                f"{engines:7d} {batch_size:10d}  " + ", ".join(f"{name} {share:.3f}" for name, share in found.items())
            )
            before, unknown, learnt = (round(share, 3) for share in found.values())
            if batch_size == arguments.batch_size[0]:
                last |= {f"efficiency_{engines}": learnt, f"unknown_{engines}": unknown, f"before_{engines}": before}
    print(json.dumps(last))


if __name__ == "__main__":
    main()
