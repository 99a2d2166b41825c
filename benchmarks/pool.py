"""Measures the driver: its rate of tasks with many workers, and its memory with many rows.

The generate and the score stage run whole, with workers that compute nothing and return rows of realistic size through
the real Ray. Detecting languages, planning, converting, writing and reading back are those of xlr. The last line is
JSON; see README.md for figures.

    python benchmarks/pool.py WORK [--workers 64] [--rows 1500000]
"""

import argparse
import functools
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from xlr import detection
from xlr.cluster import raypool
from xlr.records import Message, SampleSettings, SampleTask, Scored, ScoreTask, Task
from xlr.rewarding import scores
from xlr.run.context import Context
from xlr.run.files import remove, write_text
from xlr.sampling import responses, room
from xlr.settings.config import Config
from xlr.versions import DETECTORS, FUSED, LIBRARIES, VLLM, versions

EXAMPLES, SAMPLES = 4, 10  # a scoring batch: 40 responses
SCORED_TOKENS, SAMPLED_TOKENS, PROMPT_TOKENS = 500, 700, 200
VOCABULARY = 49152
SENTENCES = (
    "La inteligencia artificial ha cambiado la manera en que trabajamos, y muchos creen que su impacto crecerá. ",
    "Para preparar la sopa se necesitan dos cebollas, medio litro de caldo y un poco de paciencia. ",
    "El río nace en las montañas del norte y atraviesa cuatro provincias antes de llegar al mar. ",
)
TEXT = "".join(SENTENCES[number % 3] for number in range(20))  # about 2,000 characters


# Huge pages, which models gain from, triple the memory of an idle worker.
PLAIN_ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": str(128 << 10),
    "MALLOC_TRIM_THRESHOLD_": str(128 << 10),
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=0",
}
_TOKENS = list(range(SCORED_TOKENS))


class Answer:
    """What `Pool` reads of a worker's answer. The real one is in a module that imports torch: 64 processes would."""

    def __init__(self, result: Any):
        self.result, self.load_seconds, self.compute_seconds, self.splits, self.peak_memory = result, 0.0, 0.0, 0, 0


class IdleWorker:
    """A worker without a model. It detects languages, as the real one does."""

    def __init__(self, *_arguments: Any):
        pass

    def node(self) -> tuple[str, dict[str, str | None]]:
        """As `Actor.node`."""
        return socket.gethostname(), versions((*LIBRARIES, *VLLM, *FUSED, *DETECTORS))

    def run(self, task: Task) -> Answer:
        """Answer at once: with `max_new_tokens` tokens for each request, or with equal log-probabilities."""
        if isinstance(task, SampleTask):
            tokens = [(7919 * position) % VOCABULARY for position in range(task.settings.max_new_tokens)]
            return Answer([(list(tokens), "length") for _ in task.requests])  # copies: pickle sends a shared list once
        return Answer([self._scored(task, texts) for texts in task.texts])

    def _scored(self, task: ScoreTask, texts: tuple[tuple[str, str], ...]) -> Scored:
        return Scored([(-1.0,) * len(task.models) for _ in texts], detection.detect(texts, task.expected))


class Encoder:
    """A tokenizer that gives each text as many tokens as a real one would, and makes the same text of all tokens."""

    name = "none"

    def prompt_of(self, messages: list[Message]) -> tuple[int, ...]:
        """`PROMPT_TOKENS` tokens."""
        first = len(messages[-1]["content"])
        return tuple((first + position) % VOCABULARY for position in range(PROMPT_TOKENS))

    def responses(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """`SCORED_TOKENS` tokens each. Equal tokens are one object, as with a real tokenizer."""
        return [tuple(_TOKENS) for _ in texts]

    def response(self, text: str) -> tuple[int, ...]:
        """The tokens of one text."""
        return self.responses([text])[0]

    def decode(self, _token_ids: list[int]) -> str:
        """About 2,000 characters of Spanish."""
        return TEXT

    def thought(self, _text: str) -> str:
        """Nothing: the model does not think."""
        return ""

    def beginning(self, _thought: str) -> tuple[int, ...]:
        """Nothing that a response begins with."""
        return ()

    def may_exceed(self, _texts: Sequence[str], _limit: int) -> bool:
        """Never."""
        return False

    def stop_ids(self, _also: tuple[int, ...]) -> list[int]:
        """One."""
        return [0]


def prepare(context: Context, rows: int) -> None:
    """Write prompts, and take the place of what stages read from models."""
    lines = [f'{{"instruction_id": "{number}", "instruction": "{number}"}}\n' for number in range(rows // SAMPLES)]
    for lang in ("en", "es"):
        write_text(Path(context.config.prompts.path) / f"{lang}.jsonl", "".join(lines))
    context.__dict__ |= {"encoder": Encoder(), "require_model": lambda _model: "none"}
    responses._require_room = lambda context: None
    responses.sample_settings = lambda *_: SampleSettings(0.9, 1.0, 0, SAMPLED_TOKENS, (0,))
    room.positions_of_run = lambda context: None


def seconds_of(stage: Callable[[Context, int], Any], context: Context) -> tuple[float, float]:
    """Time of a stage of iteration 1, from its first read to its manifest, and this process's CPU time."""
    begun, used = time.monotonic(), time.process_time()
    stage(context, 1)
    return time.monotonic() - begun, time.process_time() - used


def start_workers(context: Context, workers: int) -> None:
    """Start Ray and the workers. Ray takes the CPUs for more than they are: the workers need hardly any."""
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}  # read when ray is imported
    os.environ |= PLAIN_ALLOCATOR
    import ray
    import transformers.utils.type_validators  # noqa: F401  # brings torch: what a real driver opens tokenizers with

    ray.init = functools.partial(ray.init, num_cpus=workers)
    raypool.RemoteWorker = IdleWorker  # type: ignore[misc, assignment]
    begun = time.monotonic()
    one = ScoreTask(("policy",), (), "auto", ((("es", "un texto"),),), ("es",))
    for _ in context.pool.map((number, one) for number in range(20 * workers)):
        pass
    print(f"Ray and {len(context.pool.workers)} workers started in {time.monotonic() - begun:.1f} s", flush=True)


@contextmanager
def peak_memory() -> Iterator[list[float]]:
    """The most resident memory of this process inside the block in GB, once it has ended, and that at its start."""
    process, ended = psutil.Process(), threading.Event()
    found = [0.0, process.memory_info().rss / 1e9]

    def watch() -> None:
        while not ended.wait(0.2):
            found[0] = max(found[0], process.memory_info().rss / 1e9)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()


def _driver(memory: list[float], cpu_seconds: float, rows: int) -> str:
    return f"driver {1000 * cpu_seconds / rows:.2f} ms of CPU a row, {memory[1]:.2f} GB before, {memory[0]:.2f} at most"


def main() -> None:
    """Print both rates and the driver's memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="folder for the files, which are removed at the end")
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--rows", type=int, default=150_000, help="responses that are sampled, then scored")
    parser.add_argument("--batch-size", type=int, default=64, help="responses per sampling task")
    arguments = parser.parse_args()
    run = {
        "run_dir": str(arguments.work / "run"),
        "languages": ["es"],
        "model": {"initial": "none", "aligned": "none"},
        "prompts": {"path": str(arguments.work / "prompts")},
        "generate": {"num_samples": SAMPLES, "batch_size": arguments.batch_size},
        "score": {"batch_tokens": EXAMPLES * (PROMPT_TOKENS + SAMPLES * SCORED_TOKENS)},
        "ray": {"actors": arguments.workers, "cpus_per_actor": 1},
    }
    context = Context(Config.model_validate(run))
    start_workers(context, arguments.workers)
    prepare(context, arguments.rows)
    with peak_memory() as sampling:
        seconds, used = seconds_of(responses.make, context)
    rate = arguments.rows / seconds
    print(f"sampling: {rate:.0f} rows/s; {_driver(sampling, used, arguments.rows)}", flush=True)
    with peak_memory() as scoring:
        seconds, used = seconds_of(scores.make, context)
    batches = arguments.rows / (EXAMPLES * SAMPLES) / seconds
    print(f"scoring: {batches:.1f} batches/s; {_driver(scoring, used, arguments.rows)}")
    context.close()
    remove(context.run.path)
    remove(Path(context.config.prompts.path))
    figures = {
        "rows_per_second": round(rate, 1),
        f"batches_per_second_{arguments.workers}": round(batches, 1),
        "driver_gb": round(max(sampling[0], scoring[0]), 2),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
