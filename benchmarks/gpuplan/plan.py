"""What a check is given, and what it returns."""

import gc
import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from xlr.maths import memory
from xlr.records import Example
from xlr.selftest import material

NO_GPU = "not run: no GPU"
HEAD_SD = 5.0  # of the logits: the largest of 128,256 then reaches about 22, as in a trained model
ORDINARY = 500  # tokens below this number are in the tokenizer of `material`


class NotRunError(Exception):
    """The check makes no sense on this machine; the message says why."""


@dataclass(frozen=True)
class Result:
    """What a check found. `limit` says in words what passes; `info` means that there is no limit here."""

    verdict: Literal["pass", "fail", "info"]
    limit: str
    figures: dict[str, Any]


@dataclass(frozen=True)
class Setup:
    """The machine, a size, and a folder for models and checkpoints."""

    size: str
    device: torch.device
    work: Path

    @property
    def on_gpu(self) -> bool:
        """Whether the checks run on a GPU."""
        return self.device.type == "cuda"

    @property
    def tiny(self) -> bool:
        """Whether sizes are those for a test on a CPU."""
        return self.size == "tiny"

    @property
    def shape(self) -> memory.Shape:
        """The model's shape."""
        return material.sizes(self.size)


Check = Callable[[Setup], Result]


def judged(passes: bool, limit: str, figures: dict[str, Any], counts: bool = True) -> Result:
    """A result with a limit.

    Args:
        counts: whether the limit holds on this machine and size; if not, the figures are only information.
    """
    return Result(("pass" if passes else "fail") if counts else "info", limit, figures)


def config_of(size: str, layers: int | None = None) -> LlamaConfig:
    """The configuration of a shape, if asked with another number of layers."""
    own = material.SHAPES[size] | ({"num_hidden_layers": layers} if layers else {})
    return LlamaConfig(**own, max_position_embeddings=8192, tie_word_embeddings=False, dtype=torch.bfloat16)


def random_model(config: LlamaConfig, device: torch.device) -> LlamaForCausalLM:
    """A model of random bfloat16 weights, made on the device."""
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(default)
    with torch.no_grad():
        model.lm_head.weight.normal_(std=HEAD_SD / config.hidden_size**0.5)
    return model.eval()


def random_example(prompt: int, responses: Sequence[int], seed: int) -> Example:
    """An example of random tokens with these lengths."""
    generator = torch.Generator().manual_seed(seed)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, ORDINARY, (count,), generator=generator).tolist())

    return Example(tokens(prompt), tuple(map(tokens, responses)))


def apart(setup: Setup, compute: Callable[..., Any], *arguments: Any) -> Any:
    """Compute in a new process on a GPU, so that its memory is free afterwards; on a CPU in this one, which is faster.

    Raises:
        BrokenProcessPool: the process was killed.
    """
    if not setup.on_gpu:
        return compute(*arguments)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(compute, *arguments).result()


def optional(measure: Callable[[], Any]) -> Any:
    """A figure of another implementation; if that does not run here, which is no fault of xlr's, the reason."""
    try:
        return measure()
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:300]


def release(setup: Setup) -> None:
    """Free the GPU's memory that nothing uses, also for other processes."""
    gc.collect()
    if setup.on_gpu:
        torch.cuda.empty_cache()


def synchronize(device: torch.device) -> None:
    """Wait until a device has computed everything."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def milliseconds(compute: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Mean time of a call after one that does not count."""
    compute()
    synchronize(device)
    begun = time.perf_counter()
    for _ in range(repeats):
        compute()
    synchronize(device)
    return 1000 * (time.perf_counter() - begun) / repeats


def relative(found: Tensor, expected: Tensor) -> float:
    """The norm of a difference, relative to that of what is expected."""
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).norm() / expected.norm())


def cosine(found: Tensor, expected: Tensor) -> float:
    """The cosine of two tensors as vectors."""
    found, expected = found.detach().double().flatten(), expected.detach().double().flatten()
    return float(found @ expected / (found.norm() * expected.norm()))


def kernels_of(compute: Callable[[], object]) -> dict[str, tuple[int, float]]:
    """The GPU's kernels of a call: name -> (launches, milliseconds)."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as profiled:
        compute()
        torch.cuda.synchronize()
    found: dict[str, tuple[int, float]] = {}
    for event in profiled.events() or ():
        if event.device_type == torch.autograd.DeviceType.CUDA and not event.is_user_annotation:
            launches, spent = found.get(event.name, (0, 0.0))
            found[event.name] = launches + 1, spent + event.time_range.elapsed_us() / 1000
    return found
