"""How evenly the pairs of a training step are divided over ranks: mean over maximum tokens of the ranks.

    python benchmarks/balance.py [--pairs FOLDER_OR_FILE] [--tokenizer FOLDER]

Ranks wait for the one with most tokens, so this is the share of the GPUs' time in which they compute. `before` is the
plan that xlr had until 2026-11: batches filled up to the budget one after the other, then those with most pairs halved.
"at best" is what no plan can exceed, because a pair stays on one rank.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from xlr.chat.encoding import ChatEncoder, load_tokenizer
from xlr.data.preferences import load_preferences
from xlr.maths.batching import Batch, micro_batches, token_budget_batches
from xlr.shipped import RECIPES

BUDGET, MAX_LENGTH, EPOCHS = 8192, 4096, 5
RANKS, BATCHES = (8, 16, 32, 64), (32, 64, 128, 256)
Plan = Callable[[Sequence[int], int, int], list[list[Batch]]]


def before(lengths: Sequence[int], budget: int, world_size: int) -> list[list[Batch]]:
    """The plan that `micro_batches` replaced."""
    batches = token_budget_batches(lengths, budget)
    while len(batches) % world_size:
        largest = max(range(len(batches)), key=lambda i: len(batches[i]))
        half = (len(batches[largest]) + 1) // 2
        batches[largest : largest + 1] = [batches[largest][:half], batches[largest][half:]]
    batches.sort(key=lambda batch: (-sum(lengths[i] for i in batch), batch))
    return [batches[start : start + world_size] for start in range(0, len(batches), world_size)]


def balance(lengths: Sequence[int], size: int, ranks: int, plan: Plan) -> tuple[float, float]:
    """Mean over maximum tokens of the ranks, over all micro-steps of several epochs; and what no plan can exceed."""
    mean = most = least = 0.0
    for epoch in range(EPOCHS):
        order = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(epoch)).tolist()
        for start in range(0, len(order) - size + 1, size):
            own = [lengths[i] for i in order[start : start + size]]
            least += max(max(own), sum(own) / ranks)  # a pair stays on one rank
            for micro_step in plan(own, BUDGET, ranks):
                tokens = [sum(own[i] for i in batch) for batch in micro_step]
                mean, most = mean + sum(tokens) / ranks, most + max(tokens)
    return mean / most, mean / least


def read_lengths(source: Path, encoder: ChatEncoder) -> list[int]:
    """Tokens of each pair: the prompt once, and both responses."""
    lengths = []
    for file in [source] if source.is_file() else sorted(source.glob("*.jsonl")):
        for pair in load_preferences(str(file)):
            answers = [len(encoder.response(answer)) for answer in (pair.chosen, pair.rejected)]
            prompt = len(encoder.prompt_of(pair.prompt))
            if prompt + max(answers) <= MAX_LENGTH:
                lengths.append(prompt + sum(answers))
    return lengths


def main() -> None:
    """Print the table and the line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=Path, default=RECIPES / "quickstart" / "preferences.jsonl")
    parser.add_argument("--tokenizer", default="models/smollm2-135m-instruct")
    arguments = parser.parse_args()
    lengths = read_lengths(arguments.pairs, ChatEncoder(load_tokenizer(arguments.tokenizer), arguments.tokenizer))
    print(f"{len(lengths)} pairs, {sum(lengths) / len(lengths):.0f} tokens on average, at most {max(lengths)}")
    print("pairs a step  ranks  before  after  at best")
    found: dict[tuple[int, int], tuple[float, float]] = {}
    for size in (size for size in BATCHES if size <= len(lengths)):
        for ranks in RANKS:
            (old, _), (new, best) = (balance(lengths, size, ranks, plan) for plan in (before, micro_batches))
            found[size, ranks] = old, new
            print(f"{size:12}  {ranks:5}  {old:6.3f}  {new:5.3f}  {best:7.3f}")
    named = {f"balance_{n}": round(found[32, n][1], 4) for n in (8, 16)}
    print(json.dumps(named | {f"before_{n}": round(found[32, n][0], 4) for n in (8, 16)}))


if __name__ == "__main__":
    main()
