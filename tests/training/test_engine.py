"""Recomputation of activations: the same gradients, and only the intended operations run again."""

from collections import Counter
from typing import Any, Literal

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests import tiny
from xlr.config import SHARED_PROMPT
from xlr.model.batch import pack
from xlr.model.logprobmodel import LogprobModel
from xlr.records import Example
from xlr.training.engine import recomputation

EXAMPLES = [Example((5, 6, 7), ((1, 2, 3, 4), (9, 8))), Example((4,), ((3, 3, 2), (1, 5, 6)))]


class Calls(TorchDispatchMode):
    """Counts the operations that torch runs."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, operation: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        self.counts[operation.overloadpacket._qualified_op_name.removeprefix("aten::")] += 1
        return operation(*arguments, **(keywords or {}))


def backward(gradient_checkpointing: Literal[False, True, "selective"]) -> tuple[Counter[str], dict[str, torch.Tensor]]:
    """Run a backward pass. Returns the counts of its operations, and the gradients."""
    causal_lm = tiny.make_model(50, layers=3)
    causal_lm.set_attn_implementation(SHARED_PROMPT)
    if gradient_checkpointing:
        causal_lm.gradient_checkpointing_enable(recomputation(gradient_checkpointing))
    causal_lm.train()
    loss = LogprobModel(causal_lm)(pack(EXAMPLES)).sum()
    with Calls() as calls:
        loss.backward()
    return calls.counts, {name: p.grad for name, p in causal_lm.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("gradient_checkpointing", [True, "selective"])
def test_recomputation_changes_no_bit_of_the_gradients(gradient_checkpointing: Literal[True, "selective"]) -> None:
    _, expected = backward(False)
    _, found = backward(gradient_checkpointing)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_selective_recomputes_only_cheap_operations() -> None:
    kept, selective, everything = (backward(mode)[0] for mode in (False, "selective", True))
    attention = "_scaled_dot_product_flash_attention_for_cpu"
    assert selective["mm"] == kept["mm"] < everything["mm"]
    assert selective[attention] == kept[attention] == 0 < everything[attention]
    assert selective["rsqrt"] == everything["rsqrt"] > kept["rsqrt"]
