"""Measures the driver's time and memory: workers that compute nothing return rows of realistic size through Ray.

Pool, resumable work and files are those of xlr. Only the worker is replaced, by one that answers every request at once
with the same tokens. The last line is JSON; see README.md for figures.

    python benchmarks/pool.py WORK [--rows 150000] [--tokens 700]
"""

import argparse
import json
import resource
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

import xlr.model.worker
from xlr.model.actor import Actor
from xlr.records import Response, SampleRequest, SampleSettings, SampleTask, Task
from xlr.run.artifact import Artifact
from xlr.run.context import Context
from xlr.run.files import remove
from xlr.run.work import Work, resumable
from xlr.settings.config import Config

SAMPLES, BATCH_ROWS, PROMPT_TOKENS, ACTORS = 10, 64, 200, 2
VOCABULARY = 49152


class IdleWorker(Actor):
    """A worker without a model."""

    def __init__(self, *_arguments: Any):
        super().__init__()

    def compute(self, task: Task) -> list[tuple[list[int], str]]:
        """Return `max_new_tokens` tokens for each request, without computing."""
        assert isinstance(task, SampleTask)
        tokens = [(7919 * position) % VOCABULARY for position in range(task.settings.max_new_tokens)]
        return [(list(tokens), "length") for _ in task.requests]  # copies: pickle sends a shared list only once


def main() -> None:
    """Send all rows through the pool and print the rate and the driver's memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="folder for the pieces, which are removed at the end")
    parser.add_argument("--rows", type=int, default=150_000, help="number of responses")
    parser.add_argument("--tokens", type=int, default=700, help="tokens per response")
    arguments = parser.parse_args()
    rows, tokens = arguments.rows, arguments.tokens
    settings = SampleSettings(0.9, 1.0, 0, tokens, (0,))
    prompts = [tuple(range(start, start + PROMPT_TOKENS)) for start in range(0, rows, SAMPLES)]
    batches = [list(range(start, min(start + BATCH_ROWS, rows))) for start in range(0, rows, BATCH_ROWS)]
    tasks = [
        SampleTask("", tuple(SampleRequest(prompts[row // SAMPLES], row) for row in batch), settings)
        for batch in batches
    ]
    text = "palabra " * (tokens // 2)  # four characters per token

    xlr.model.worker.Worker = IdleWorker  # type: ignore[misc, assignment]
    run = {"languages": ["es"], "model": {"initial": "none", "aligned": "none"}, "prompts": {"path": "none"}}
    context = Context(Config.model_validate({"run_dir": str(arguments.work), "ray": {"actors": ACTORS}, **run}))
    begun = time.monotonic()
    for _ in context.pool.map(dict(enumerate(tasks[: 2 * ACTORS]))):
        pass
    print(f"Ray and {ACTORS} workers started in {time.monotonic() - begun:.1f} s; {rows} rows of {tokens} tokens")
    print(f"{'rows':>8} {'s':>6} {'driver GB':>10}")
    begun = time.monotonic()

    def show(done: int) -> None:
        memory = psutil.Process().memory_info().rss / 1e9
        print(f"{done:8d} {time.monotonic() - begun:6.1f} {memory:10.2f}", flush=True)

    def to_rows(batch: list[int], result: list[tuple[list[int], str]]) -> list[Response]:
        return [
            Response(str(row // SAMPLES), "es", row % SAMPLES, text, token_ids, reason)
            for row, (token_ids, reason) in zip(batch, result, strict=True)
        ]

    target = Artifact(arguments.work, arguments.work / "pool", "generate", {}, {})
    remove(target.pieces_folder("parts"))
    finished = 0

    def num_tokens(batch: list[int], rows: Sequence[Response]) -> int:
        nonlocal finished
        finished += 1
        if finished % (len(batches) // 10) == 0:
            show(finished * BATCH_ROWS)
        return tokens * len(rows)

    work = Work([[("es", str(row))] for row in range(rows)], batches, tasks, Response, to_rows, num_tokens)
    show(0)
    found = resumable(context, target, "parts", work, "pool", "rows")
    seconds = time.monotonic() - begun
    assert len(found) == rows
    show(rows)
    print(f"peak memory of the driver: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9:.2f} GB")
    context.close()
    remove(target.pieces_folder("parts"))
    print(json.dumps({"rows_per_second": round(rows / seconds, 1)}))


if __name__ == "__main__":
    main()
