"""Part B: the worker's log-probabilities and responses, with a whole model of random weights."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from random import Random
from statistics import fmean
from typing import Any

import torch

from xlr.maths.memory import Shape
from xlr.maths.noise import allowed_difference
from xlr.model.fused import fuse
from xlr.model.gpus import peak_flops
from xlr.model.worker import Worker
from xlr.records import Example, SampleRequest, SampleSettings
from xlr.settings.modelconfig import SHARED_PROMPT

from .plan import (
    NO_GPU,
    Check,
    Result,
    Setup,
    config_of,
    judged,
    kernels_of,
    random_example,
    random_model,
    synchronize,
)

NAMES = ("policy", "reference")
SPARE_BYTES = 12e9  # what a batch that is too large may use, so that it runs out of memory


class RandomWorker(Worker):
    """A worker whose models are all the same one, of random weights, which no file holds."""

    def __init__(self, setup: Setup):
        super().__init__(None, "bfloat16", SHARED_PROMPT, on_gpu=setup.on_gpu)
        self.model = random_model(config_of(setup.size), setup.device)
        fuse(self.model, "auto", setup.on_gpu)
        self.most_tokens: int | None = None
        """On a CPU: a larger batch runs out of memory."""

    def _load(self, *_: Any) -> Any:
        return self.model

    def _logps(self, causal_lm: Any, examples: Sequence[Example]) -> list[float]:
        if self.most_tokens is not None and sum(example.num_tokens for example in examples) > self.most_tokens:
            raise torch.OutOfMemoryError("as if the memory were full")
        return super()._logps(causal_lm, examples)

    @property
    def splits(self) -> int:
        """How many batches were halved so far."""
        return self._splits


def _batch(tokens: int, seed: int) -> list[Example]:
    """Examples of ten responses with lengths like real ones, of about this number of tokens together."""
    chance = Random(seed)
    found: list[Example] = []
    mean = min(500, tokens // 30)
    while (room := tokens - sum(example.num_tokens for example in found)) > 11 * mean:
        lengths = [min(2400, int(chance.lognormvariate(0, 0.5) * 0.88 * mean) + 2) for _ in range(10)]
        found.append(random_example(min(230, mean), lengths, seed * 1000 + len(found)))
        if found[-1].num_tokens > room:
            found.pop()
            break
    return found


def alone_and_in_batches(setup: Setup) -> Result:
    """6: log-probabilities of the same responses alone, in batches, and in another order."""
    worker, chance = RandomWorker(setup), Random(0)
    shortest, longest = (2, 20) if setup.tiny else (20, 1200)
    rows = [random_example(longest // 5, [chance.randint(shortest, longest)], seed) for seed in range(64)]

    def scored(order: Sequence[Example], together: int) -> list[float]:
        parts = [order[start : start + together] for start in range(0, len(order), together)]
        return [logp for part in parts for logp in worker.logps(NAMES[0], part, "bfloat16")]

    batched = scored(rows, 16)  # with `require_sound_logps` before it
    again = scored(rows, 16)
    backwards = scored(rows[::-1], 16)[::-1]
    alone = scored(rows, 1)
    lengths = [len(row.responses[0]) for row in rows]
    differences = [max(abs(a - b), abs(c - b)) for a, b, c in zip(alone, batched, backwards, strict=True)]
    found = {
        "a token": fmean(own / length for own, length in zip(differences, lengths, strict=True)),
        "a response, at most": max(differences),
        "per root of a token, at most": max(d / n**0.5 for d, n in zip(differences, lengths, strict=True)),
        "same bits again": batched == again,
        "same bits alone": batched == alone,
    }
    passes = found["a token"] <= 0.02 and found["a response, at most"] <= 1.5
    return judged(passes, "mean |difference| a token <= 0.02, a response <= 1.5 nats", found)


def useful_flops(shape: Shape, examples: Sequence[Example]) -> float:
    """Operations of the layers' and the head's products in a forward pass, attention left out."""
    labels = sum(len(response) for example in examples for response in example.responses)
    tokens = sum(example.num_tokens for example in examples)
    return 2.0 * (shape.layers * shape.layer * tokens + shape.embedding * labels)


def speed_of_scoring(setup: Setup) -> Result:
    """7: tokens a second and MFU of scoring under two names, and where the GPU's time goes."""
    worker = RandomWorker(setup)
    figures: dict[str, Any] = {}
    large, small = ((512, 2), (128, 2)) if setup.tiny else ((16384, 20), (2048, 8))
    for name, (tokens, count) in (("large", large), ("small", small)):
        batches = [_batch(tokens, seed) for seed in range(count)]
        worker.score(NAMES, batches[0], "bfloat16")
        seconds = _seconds(worker, batches, setup.device)
        done = len(NAMES) * sum(example.num_tokens for batch in batches for example in batch)
        flops = len(NAMES) * sum(useful_flops(setup.shape, batch) for batch in batches)
        own: dict[str, Any] = {"tokens_per_second": done / seconds, "mfu": flops / seconds / peak_flops(setup.device)}
        figures[name] = own | (_gpu_time(worker, batches[:2], setup.device) if setup.on_gpu else {"idle": NO_GPU})
    counts = setup.size == "8b" and setup.on_gpu
    passes = counts and figures["large"]["mfu"] >= 0.4 and figures["large"]["idle"] <= 0.05
    return judged(passes, "8b on a GPU, 16,384 tokens: MFU >= 40 %, idle <= 5 %", figures, counts)


def _seconds(worker: Worker, batches: Sequence[Sequence[Example]], device: torch.device) -> float:
    synchronize(device)
    begun = time.perf_counter()
    for batch in batches:
        worker.score(NAMES, batch, "bfloat16")
    synchronize(device)
    return time.perf_counter() - begun


def _gpu_time(worker: Worker, batches: Sequence[Sequence[Example]], device: torch.device) -> dict[str, Any]:
    """The share of time in which the GPU idles, and its longest kernels in milliseconds.

    The profiler slows the host, so the time between begin and end is measured without it.
    """
    seconds = _seconds(worker, batches, device)
    kernels = kernels_of(lambda: _seconds(worker, batches, device))
    busy = sum(spent for _, spent in kernels.values()) / 1000
    longest = sorted(kernels.items(), key=lambda item: -item[1][1])[:8]
    return {
        "idle": max(0.0, 1 - busy / seconds),
        "launches": sum(launches for launches, _ in kernels.values()),
        "kernels": {name[:60]: spent for name, (_, spent) in longest},
    }


def too_large_a_batch(setup: Setup) -> Result:
    """8: a batch that exceeds the memory is halved, with the same values, and leaves the memory as it was."""
    worker = RandomWorker(setup)
    size, count = (128, 4) if setup.tiny else (16384, 24)
    batches = [_batch(size, seed) for seed in range(count)]
    expected = [logps for batch in batches for logps in worker.score(NAMES, batch, "bfloat16")]
    examples = [example for batch in batches for example in batch]
    with _little_memory(worker, setup):
        before = _allocated(setup)
        found = worker.score(NAMES, examples, "bfloat16")
        left = _allocated(setup) - before
    beyond = sum(
        abs(ours - theirs) > allowed_difference(theirs, len(response), bfloat16=True)
        for example, own, others in zip(examples, found, expected, strict=True)
        for response, logps, before_logps in zip(example.responses, own, others, strict=True)
        for ours, theirs in zip(logps, before_logps, strict=True)
    )
    figures = {"tokens": sum(e.num_tokens for e in examples), "splits": worker.splits, "beyond rounding": beyond}
    passes = worker.splits > 0 and beyond == 0 and abs(left) <= 1e9
    limit = "halved, all values within rounding, memory back to 1 GB"
    return judged(passes, limit, figures | {"left_gb": left / 1e9, "simulated": not setup.on_gpu})


def _allocated(setup: Setup) -> int:
    return torch.cuda.memory_allocated() if setup.on_gpu else 0


@contextmanager
def _little_memory(worker: RandomWorker, setup: Setup) -> Iterator[None]:
    """Let large batches run out of memory inside the block: on a GPU truly, on a CPU by a limit."""
    if not setup.on_gpu:
        worker.most_tokens = 200
        yield
        return
    torch.cuda.empty_cache()
    whole = torch.cuda.get_device_properties(setup.device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, (torch.cuda.memory_reserved() + SPARE_BYTES) / whole))
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def sampling(setup: Setup) -> Result:
    """9: milliseconds a step of sampling by transformers, with and without cuDNN, and the same tokens twice."""
    worker = RandomWorker(setup)
    rows, steps, contexts = (4, 6, (10, 20)) if setup.tiny else (128, 200, (300, 2200))
    stop = setup.shape.vocabulary - 1
    settings = SampleSettings(0.9, 1.0, 0, steps, (stop,))
    figures: dict[str, Any] = {"steps": steps, "rows": rows}
    same = True
    for context in contexts:
        prompts = [random_example(context, (), seed).prompt for seed in range(rows // 4)]
        requests = [SampleRequest(prompts[row // 4], row) for row in range(rows)]
        found = []
        for cudnn in (False, False, True) if setup.on_gpu else (False, False):
            torch.backends.cuda.enable_cudnn_sdp(cudnn)
            begun = time.perf_counter()
            found.append(worker.sample(NAMES[0], requests, settings))
            spent = 1000 * (time.perf_counter() - begun) / max(len(tokens) for tokens, _ in found[-1])
            figures[f"context {context}, cudnn {'on' if cudnn else 'off'}: ms a step"] = spent
        torch.backends.cuda.enable_cudnn_sdp(False)
        same &= found[0] == found[1]
    if not setup.on_gpu:
        figures["cudnn on"] = NO_GPU
    return judged(same, "the same tokens twice", figures | {"same": same})


CHECKS: dict[int, Check] = {
    6: alone_and_in_batches,
    7: speed_of_scoring,
    8: too_large_a_batch,
    9: sampling,
}
