"""Part A: versions and kernels, without weights.

Shapes: `T` tokens of a row, `H` query heads, `G` key heads, `D` head size or hidden size, `N` predicted tokens, `V`
vocabulary.
"""

import functools
import importlib.metadata
import os
import resource
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from xlr.maths.logprobs import token_logps
from xlr.model.gpus import set_up_gpus
from xlr.packing import varlen
from xlr.packing.attention import attention_arguments, response_masks, shared_prompt_attention
from xlr.packing.batch import Group, pack
from xlr.records import Example

from .plan import (
    HEAD_SD,
    NO_GPU,
    Check,
    NotRunError,
    Result,
    Setup,
    apart,
    config_of,
    cosine,
    judged,
    kernels_of,
    milliseconds,
    optional,
    random_example,
    random_model,
    relative,
)

PACKAGES = ("torch", "triton", "transformers", "deepspeed", "liger-kernel", "flash-attn")
BACKENDS = {0: "math", 1: "flash", 2: "memory-efficient", 3: "cuDNN"}
PLAN_SHAPES = 300
Row = tuple[Tensor, Tensor, Tensor]  # query (1, H, T, D), key and value (1, G, T, D)


def random_row(heads: int, kv_heads: int, tokens: int, size: int, device: torch.device, dtype: torch.dtype) -> Row:
    """Random queries, keys and values, which take gradients."""
    generator = torch.Generator(device).manual_seed(0)
    query, key, value = (
        torch.randn(1, own, tokens, size, generator=generator, device=device, dtype=dtype).requires_grad_()
        for own in (heads, kv_heads, kv_heads)
    )
    return query, key, value


def backend_of_first_piece(setup: Setup) -> Result:
    """1: versions, and which backend torch takes for the first piece of a group."""
    found: dict[str, Any] = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    limit = "with xlr's settings not cuDNN"
    if not setup.on_gpu:
        return Result("info", limit, found | {"backend": NO_GPU})
    found |= {"gpu": torch.cuda.get_device_name(setup.device), "cuda": torch.version.cuda}
    found["cudnn"] = torch.backends.cudnn.version()
    row = random_row(32, 8, 512, 128, setup.device, torch.bfloat16)
    torch.backends.cuda.enable_cudnn_sdp(True)
    found["backend of torch alone"] = _backend(row)
    set_up_gpus()
    found["backend"] = _backend(row)
    found["expandable segments"] = any(segment.get("is_expandable") for segment in torch.cuda.memory_snapshot())
    return judged(found["backend"] != "cuDNN", limit, found)


def _backend(row: Row) -> str:
    choice = torch._fused_sdp_choice(*row, None, 0.0, True, scale=None, enable_gqa=True)
    return BACKENDS.get(int(choice), str(choice))


def plans_of_cudnn(setup: Setup) -> Result:
    """2: what attention of ever new shapes costs, with and without cuDNN. Each way has a process of its own."""
    if not setup.on_gpu:
        raise NotRunError("no GPU: only GPUs have attention by cuDNN")
    modes = ("off", "on", "avoid recompilation")
    figures = {f"cudnn {mode}": apart(setup, time_shapes, mode) for mode in modes}
    off = figures["cudnn off"]
    passes = off["forward_ms"] < 0.3 and off["host_mb"] < 20
    return judged(passes, "cuDNN off: forward < 0.3 ms a call, host memory < 20 MB", figures)


def time_shapes(mode: str) -> dict[str, float]:
    """Milliseconds of attention of a new shape each time, and the growth of the host's memory in MB."""
    if mode == "avoid recompilation":
        os.environ["TORCH_CUDNN_SDPA_AVOID_RECOMPILE"] = "1"
    set_up_gpus()
    torch.backends.cuda.enable_cudnn_sdp(mode != "off")
    device = torch.device("cuda")
    warm = random_row(32, 8, 4096, 128, device, torch.bfloat16)
    _piece(warm, 64).sum().backward()
    torch.cuda.synchronize()
    before, spent = _host_memory(), [0.0, 0.0]
    for number in range(PLAN_SHAPES):
        row = random_row(32, 8, 1024 + 8 * number, 128, device, torch.bfloat16)
        for which, length in ((0, 64 + 3 * number), (1, 65 + 3 * number)):
            torch.cuda.synchronize()
            begun = time.perf_counter()
            found = _piece(row, length)
            if which:
                found.sum().backward()
            torch.cuda.synchronize()
            spent[which] += time.perf_counter() - begun
    forward, both = (1000 * seconds / PLAN_SHAPES for seconds in spent)
    return {"forward_ms": forward, "forward_backward_ms": both, "host_mb": (_host_memory() - before) / 1e6}


def _host_memory() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _piece(row: Row, length: int) -> Tensor:
    query, key, value = (tensor[:, :, :length] for tensor in row)
    return scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)


def attention_against_dense(setup: Setup) -> Result:
    """3: attention of packed rows in bfloat16 against a dense mask in float32."""
    most = 10 if setup.tiny else 2400
    pieces = [length for length in (1, 2, 63, 64, 65, 128, 2400) if length <= most]
    prompts = (1, 7, 20) if setup.tiny else (1, 300, 1500)
    rows = [
        [(prompts[0], [pieces[n % len(pieces)] for n in range(10)]), (prompts[1], [pieces[-1]])],
        [(prompts[1], [1]), (prompts[2], pieces)],
    ]
    shape = setup.shape
    size = shape.hidden // shape.heads
    figures = {"output": 0.0, "cosine": 1.0}
    for row in rows:
        groups = pack([random_example(prompt, [n + 1 for n in own], 0) for prompt, own in row]).groups
        assert groups is not None
        output, cosines = compare_attention(groups, shape.heads, shape.kv_heads, size, setup.device, torch.bfloat16)
        figures = {"output": max(output, figures["output"]), "cosine": min(*cosines, figures["cosine"])}
    passes = figures["output"] <= 1e-2 and figures["cosine"] >= 0.9995
    return judged(passes, "output rel. <= 1e-2, cosine of dQ, dK, dV >= 0.9995", figures)


def compare_attention(
    groups: tuple[Group, ...], heads: int, kv_heads: int, size: int, device: torch.device, dtype: torch.dtype
) -> tuple[float, list[float]]:
    """xlr's attention of a row against a dense mask: relative error of the output, cosines of the three gradients."""
    row = random_row(heads, kv_heads, groups[-1].response_ends[-1], size, device, dtype)
    output, _ = shared_prompt_attention(nn.Identity(), *row, None, **attention_arguments(groups, device, dtype))
    weight = torch.randn(output.shape, generator=torch.Generator(device).manual_seed(1), device=device).to(dtype)
    gradients = torch.autograd.grad(output, row, weight)
    expected, expected_gradients = _dense(row, weight, may_see(groups, device))
    error = relative(output, expected)
    return error, [cosine(ours, theirs) for ours, theirs in zip(gradients, expected_gradients, strict=True)]


def _dense(row: Row, weight: Tensor, allowed_TT: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Softmax over all keys in float32, head by head, and the gradients of the row."""
    wide = [tensor.detach().float() for tensor in row]
    gradients, outputs = [torch.zeros_like(tensor) for tensor in wide], []
    heads, kv_heads, size = row[0].shape[1], row[1].shape[1], row[0].shape[3]
    for head in range(heads):
        places = [(0, head), *[(which, head * kv_heads // heads) for which in (1, 2)]]
        query, key, value = (wide[which][0, own].clone().requires_grad_() for which, own in places)
        logits_TT = (query @ key.T / size**0.5).masked_fill(~allowed_TT, -float("inf"))
        outputs.append(logits_TT.softmax(-1) @ value)
        own_gradients = torch.autograd.grad(outputs[-1], (query, key, value), weight[0, :, head].float())
        outputs[-1] = outputs[-1].detach()
        for (which, own), gradient in zip(places, own_gradients, strict=True):
            gradients[which][0, own] += gradient
    return torch.stack(outputs, 1)[None], gradients


def may_see(groups: Sequence[Group], device: torch.device) -> Tensor:
    """Which key each query may see, `(T, T)`."""
    owners: list[tuple[int, int]] = []
    for number, group in enumerate(groups):
        owners += [(number, -1)] * (group.prompt_end - group.start)
        for response, (start, end) in enumerate(pairwise((group.prompt_end, *group.response_ends))):
            owners += [(number, response)] * (end - start)
    group_T, response_T = torch.tensor(owners, device=device).T
    same_group_TT = group_T[:, None] == group_T
    own_TT = (response_T == -1) | (response_T[:, None] == response_T)
    return (same_group_TT & own_TT).tril()


def head_against_float64(setup: Setup) -> Result:
    """4: log-probabilities and gradients of the head against float64, with float32 and with rounded logits."""
    tokens, sizes = (256, (64, 128)) if setup.tiny else (8192, (1024, 4096, 8192))
    shape = setup.shape
    figures: dict[str, Any] = compare_head(tokens, shape.hidden, shape.vocabulary, setup.device)
    hidden_ND, weight_VD, labels_N = _head_problem(tokens, shape.hidden, shape.vocabulary, setup.device)
    for chunk in sizes:
        own = functools.partial(_own, hidden_ND, weight_VD, labels_N, chunk)
        figures[f"chunk {chunk}"] = _cost(setup, own, (hidden_ND, weight_VD))
    theirs = functools.partial(_liger, hidden_ND, weight_VD, labels_N)
    figures["liger"] = optional(lambda: _cost(setup, theirs, (hidden_ND, weight_VD))) if setup.on_gpu else NO_GPU
    sd, total = (2e-3, 0.05) if setup.on_gpu else (0.05, 1.5)  # CPUs round logits to bfloat16
    passes = figures["sd"] <= sd and figures["sum of 500"] <= total and figures["gradients"] <= 1e-2
    rounded = figures["rounded sd"] <= 0.05 and figures["rounded sum of 500"] <= 1.5
    limit = f"sd a token <= {sd}, sum of 500 <= {total} nats, gradients rel. <= 1e-2; rounded logits: 0.05, 1.5"
    return judged(passes and rounded, limit, figures)


def _own(hidden_ND: Tensor, weight_VD: Tensor, labels_N: Tensor, chunk_tokens: int) -> Tensor:
    return token_logps(hidden_ND, weight_VD, labels_N, chunk_tokens).sum()


def _head_problem(tokens: int, hidden: int, vocabulary: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator(device).manual_seed(0)
    hidden_ND = torch.randn(tokens, hidden, generator=generator, device=device).bfloat16()
    weight_VD = torch.randn(vocabulary, hidden, generator=generator, device=device).mul_(HEAD_SD / hidden**0.5)
    labels_N = torch.randint(vocabulary, (tokens,), generator=generator, device=device)
    return hidden_ND.requires_grad_(), weight_VD.bfloat16().requires_grad_(), labels_N


def compare_head(tokens: int, hidden: int, vocabulary: int, device: torch.device) -> dict[str, float]:
    """The errors of `token_logps` in nats, and those of its gradients relative to their norm."""
    hidden_ND, weight_VD, labels_N = _head_problem(tokens, hidden, vocabulary, device)
    found_N = token_logps(hidden_ND, weight_VD, labels_N)
    gradients = torch.autograd.grad(found_N.sum(), (hidden_ND, weight_VD))
    wide_ND, wide_VD = hidden_ND.detach().double().requires_grad_(), weight_VD.detach().double().requires_grad_()
    expected, rounded = [], []
    for start in range(0, tokens, 256):  # gradients add up in the tensors
        chunk = slice(start, start + 256)
        logps = (wide_ND[chunk] @ wide_VD.T).log_softmax(-1).gather(-1, labels_N[chunk, None])[:, 0]
        logps.sum().backward()
        expected.append(logps.detach())
        with torch.no_grad():
            rounded_CV = (hidden_ND[chunk] @ weight_VD.T).double().log_softmax(-1)
            rounded.append(rounded_CV.gather(-1, labels_N[chunk, None])[:, 0])
    expected_N = torch.cat(expected)
    assert wide_ND.grad is not None
    assert wide_VD.grad is not None
    worst = max(relative(gradients[0], wide_ND.grad), relative(gradients[1], wide_VD.grad))
    own, low = (_errors(found.detach().double() - expected_N) for found in (found_N, torch.cat(rounded)))
    return own | {f"rounded {name}": value for name, value in low.items()} | {"gradients": worst}


def _errors(differences_N: Tensor) -> dict[str, float]:
    sums = [abs(float(part.sum())) for part in differences_N.split(500)]
    return {"sd": float(differences_N.std()), "sum of 500": max(sums)}


def _liger(hidden_ND: Tensor, weight_VD: Tensor, labels_N: Tensor) -> Tensor:
    from liger_kernel.ops import LigerFusedLinearCrossEntropyFunction

    return LigerFusedLinearCrossEntropyFunction.apply(hidden_ND, weight_VD, labels_N)[0]


def _cost(setup: Setup, forward: Callable[[], Tensor], leaves: tuple[Tensor, ...]) -> dict[str, float]:
    """Milliseconds of a forward and backward pass, and on GPUs the most memory in GB beside what was there."""

    def both() -> None:
        torch.autograd.grad(forward(), leaves)

    if not setup.on_gpu:
        return {"ms": milliseconds(both, setup.device, 1)}
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    spent = milliseconds(both, setup.device, 3)
    return {"ms": spent, "gb": (torch.cuda.max_memory_allocated() - before) / 1e9}


def ways_of_attention(setup: Setup) -> Result:
    """5: one layer's attention piece by piece, in one call, by FlexAttention, and with repeated prompts."""
    if setup.tiny:
        batches = {"scoring": [(20, [10] * 4)] * 2, "training": [(20, [10] * 2)] * 2}
    else:
        batches = {"scoring": [(230, [500] * 10)] * 3, "training": [(200, [500] * 2)] * 7}
    figures: dict[str, Any] = {name: _times(setup, name == "training", shapes) for name, shapes in batches.items()}
    passes = all(own["loop"]["ms"] - own["varlen"]["ms"] > -0.05 * own["layer_ms"] for own in figures.values())
    limit = "what GPUs use (varlen) is at most 5 % of a layer slower than the loop"
    return judged(passes, limit, figures, setup.on_gpu)


def _times(setup: Setup, backward: bool, shapes: list[tuple[int, list[int]]]) -> dict[str, Any]:
    shape, device = setup.shape, setup.device
    examples = [random_example(prompt, own, seed) for seed, (prompt, own) in enumerate(shapes)]
    apart = [Example(one.prompt, (response,)) for one in examples for response in one.responses]
    size, repeats = shape.hidden // shape.heads, 10 if setup.on_gpu else 1
    found: dict[str, Any] = {}
    for name, way in (("loop", _loop), ("varlen", _varlen), ("flex", _flex), ("repeated", _varlen)):
        packed = pack(apart if name == "repeated" else examples)
        assert packed.groups is not None
        row = random_row(shape.heads, shape.kv_heads, packed.input_ids_RT.shape[1], size, device, torch.bfloat16)
        if name == "flex" and backward and not setup.on_gpu:
            found[name] = f"{NO_GPU}, and CPUs have no backward pass of FlexAttention"
            continue
        measure = functools.partial(_measured, setup, way, packed.groups, row, backward, repeats)
        found[name] = optional(measure) if name == "flex" else measure()
    return found | {"layer_ms": _layer(setup, examples, backward, repeats)}


def _measured(
    setup: Setup, way: Callable[..., Any], groups: tuple[Group, ...], row: Row, backward: bool, repeats: int
) -> dict[str, float]:
    """Milliseconds of one way of attention, and on GPUs how many kernels it launches."""
    compute = way(groups, row, setup.on_gpu)
    timed = _with_backward(compute, row) if backward else torch.no_grad()(compute)
    found: dict[str, float] = {"ms": milliseconds(timed, setup.device, repeats)}
    if setup.on_gpu:
        found["launches"] = sum(launches for launches, _ in kernels_of(timed).values())
    return found


def _with_backward(compute: Callable[[], Tensor], row: Row) -> Callable[[], object]:
    def both() -> object:
        output = compute()
        return torch.autograd.grad(output, row, torch.ones_like(output))

    return both


def _loop(groups: tuple[Group, ...], row: Row, _compiled: bool) -> Callable[[], Tensor]:
    masks = response_masks(groups, row[0].device)
    return lambda: shared_prompt_attention(nn.Identity(), *row, None, groups=groups, masks=masks)[0]


def _varlen(groups: tuple[Group, ...], row: Row, _compiled: bool) -> Callable[[], Tensor]:
    where = varlen.pieces(groups, row[0].device)
    return lambda: varlen.attend(*row, where, None)


def _flex(groups: tuple[Group, ...], row: Row, compiled: bool) -> Callable[[], Tensor]:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    allowed_TT = may_see(groups, row[0].device)
    tokens = len(allowed_TT)
    device = str(row[0].device)
    mask = create_block_mask(lambda _b, _h, q, k: allowed_TT[q, k], None, None, tokens, tokens, device)
    attend: Any = torch.compile(flex_attention, dynamic=True) if compiled else flex_attention
    own = row if compiled else tuple(tensor.detach() for tensor in row)
    return lambda: attend(*own, block_mask=mask, enable_gqa=True)


def _layer(setup: Setup, examples: list[Example], backward: bool, repeats: int) -> float:
    """Milliseconds of a whole layer, as xlr computes it on this machine."""
    config = config_of(setup.size, layers=1)
    config.vocab_size = 1024
    model = random_model(config, setup.device)
    model.set_attn_implementation("xlr_shared_prompt")
    packed = pack(examples).to(setup.device)
    assert packed.groups is not None
    arguments = attention_arguments(packed.groups, setup.device, torch.bfloat16)

    def compute() -> None:
        with torch.set_grad_enabled(backward):
            states = model.model(
                packed.input_ids_RT, position_ids=packed.position_ids_RT, use_cache=False, **arguments
            ).last_hidden_state
        if backward:
            states.sum().backward()

    return milliseconds(compute, setup.device, repeats)


CHECKS: dict[int, Check] = {
    1: backend_of_first_piece,
    2: plans_of_cudnn,
    3: attention_against_dense,
    4: head_against_float64,
    5: ways_of_attention,
}
