"""Fused operations: a model's norms, rotary embeddings and SwiGLU computed by Liger's Triton kernels.

One kernel replaces several operations of torch, each of which reads and writes all activations. The formulas are the
same, so only last bits change. The only module that imports liger_kernel.

A model is fused by giving its modules subclasses of their own classes. So weights, names, hooks and other models stay
as they are. Liger's own functions for patching models also change classes and functions of transformers for the whole
process, and rotate queries and keys in place, which selective recomputation does not allow.
"""

import importlib.metadata
import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from types import FunctionType
from typing import Any

from xlr.errors import UserError
from xlr.records import FusedOperations
from xlr.versions import FUSED, versions

ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3")
"""Types of models that can be fused. Each is compared with its own operations in the tests."""

_RELEASE = "0.8."  # of liger-kernel, as in setup.py
_ROTARY = "apply_rotary_pos_emb"  # the function of transformers, in each architecture's module
_ACTIVATIONS = ("silu", "swish")


def in_use(setting: FusedOperations, on_gpus: bool) -> bool:
    """Whether models of these architectures are fused: `auto` means on GPUs where Liger is installed.

    Raises:
        UserError: the setting is true, but they cannot be.
    """
    if setting is not True:
        return setting == "auto" and on_gpus and _missing() is None
    _require(_missing())
    if not on_gpus and os.environ.get("TRITON_INTERPRET") != "1":  # the interpreter, for tests
        _require("fused operations need GPUs")
    return True


def conditions(setting: FusedOperations, on_gpus: bool) -> dict[str, str | None]:
    """What pieces are recorded with: whether operations are fused, and the versions of the libraries that do it.

    Raises:
        UserError: see `in_use`.
    """
    fused = in_use(setting, on_gpus)
    return {"model.fused_operations": str(fused).lower()} | (versions(FUSED) if fused else {})


def require_usable(setting: FusedOperations, config: Any) -> None:
    """Check early, without a GPU, that a model can be fused if the setting is true.

    Args:
        config: the model's configuration.

    Raises:
        UserError: Liger is not installed, or the model has operations that it does not fuse.
    """
    if setting is True:
        _require(_missing() or _unsupported(config))


def fuse(causal_lm: Any, setting: FusedOperations, on_gpus: bool) -> None:
    """Fuse the operations of a model if the setting says so.

    With `auto`, a model of another architecture stays as it is.

    Raises:
        UserError: the setting is true, but the model cannot be fused.
    """
    if not in_use(setting, on_gpus):
        return
    if (why := _unsupported(causal_lm.config)) is not None:
        return _require(why) if setting is True else None
    for module in causal_lm.modules():
        own: Any = type(module)
        kind = next((kind for kind in _forwards() if own.__name__.endswith(kind)), None)
        if kind is not None:
            module.__class__ = _fused_class(own, kind)


@contextmanager
def own_operations(causal_lm: Any) -> Iterator[None]:
    """Compute with the model's own operations inside the block."""
    classes = {module: type(module) for module in causal_lm.modules() if is_fused(module)}
    for module, fused in classes.items():
        module.__class__ = fused.__base__
    try:
        yield
    finally:
        for module, fused in classes.items():
            module.__class__ = fused


def is_fused(module: Any) -> bool:
    """Whether a module, without those inside it, computes with fused operations."""
    return type(module).__module__ == __name__


def _missing() -> str | None:
    """What is not installed; None if nothing is missing."""
    try:
        found = importlib.metadata.version("liger-kernel")
    except importlib.metadata.PackageNotFoundError:
        return 'liger-kernel is not installed; `pip install ".[fused]"`'
    if not found.startswith(_RELEASE):
        return f'liger-kernel is {found}, not {_RELEASE}*; `pip install ".[fused]"`'
    return None


def _unsupported(config: Any) -> str | None:
    """Why a model cannot be fused; None if it can."""
    if config.model_type not in ARCHITECTURES:
        return f"models of type {config.model_type} cannot be fused, only {', '.join(ARCHITECTURES)}"
    if config.hidden_act not in _ACTIVATIONS:
        return f"the activation {config.hidden_act} cannot be fused, only silu"
    return None


def _require(problem: str | None) -> None:
    if problem is not None:
        raise UserError(f"model.fused_operations: {problem}, or set it to auto or false")


@cache
def _fused_class(own: Any, kind: str) -> type:
    """The subclass of a module's class whose forward pass is fused."""
    return type(f"Fused{own.__name__}", (own,), {"forward": _forwards()[kind](own), "__module__": __name__})


@cache
def _forwards() -> dict[str, Callable[[type], Callable[..., Any]]]:
    """For each kind of module, by the end of its class's name: makes the forward pass from the class."""
    import torch
    from liger_kernel.ops import LigerRMSNormFunction, LigerRopeFunction, LigerSiLUMulFunction

    def norm(self: Any, hidden_states: torch.Tensor) -> Any:
        # By default Liger writes the gradient over the incoming one, which autograd may need elsewhere.
        in_place = False
        return LigerRMSNormFunction.apply(hidden_states, self.weight, self.variance_epsilon, 0.0, "llama", in_place)

    def swiglu(self: Any, x: torch.Tensor) -> Any:
        return self.down_proj(LigerSiLUMulFunction.apply(self.gate_proj(x), self.up_proj(x)))

    def rotate(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> Any:
        # Liger rotates in place, unseen by autograd. Selective recomputation keeps the tensors and would rotate twice.
        if torch.is_grad_enabled():
            q, k = q.clone(), k.clone()
        return LigerRopeFunction.apply(q, k, cos, sin)

    def attention(own: type) -> Callable[..., Any]:
        """The class's own forward pass with another rotation, which it finds among its module's functions."""
        plain: Any = inspect.unwrap(own.forward)  # type: ignore[attr-defined]
        names = {**plain.__globals__, _ROTARY: rotate}
        copied = FunctionType(plain.__code__, names, plain.__name__, plain.__defaults__, plain.__closure__)
        copied.__kwdefaults__ = plain.__kwdefaults__
        return copied

    return {"RMSNorm": lambda _own: norm, "MLP": lambda _own: swiglu, "Attention": attention}
