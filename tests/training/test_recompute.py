from collections import Counter
from typing import Any, Literal

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests import tiny
from xlr.model.attention import SHARED_PROMPT, LogprobModel, pack
from xlr.records import Example
from xlr.training.recompute import recomputation

EXAMPLES = [Example((5, 6, 7), ((1, 2, 3, 4), (9, 8))), Example((4,), ((3, 3, 2), (1, 5, 6)))]


class Calls(TorchDispatchMode):
    """Counts the operations that run."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, operation: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        self.counts[operation.overloadpacket._qualified_op_name.removeprefix("aten::")] += 1
        return operation(*arguments, **(keywords or {}))


def backward(gradient_checkpointing: Literal[False, True, "selective"]) -> tuple[Counter[str], dict[str, torch.Tensor]]:
    """Operations of the backward pass, and the gradients."""
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
def test_gradients_are_the_same_to_the_bit(gradient_checkpointing: Literal[True, "selective"]) -> None:
    _, expected = backward(False)
    _, found = backward(gradient_checkpointing)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_selective_computes_cheap_operations_again_and_nothing_else() -> None:
    kept, selective, everything = (backward(mode)[0] for mode in (False, "selective", True))
    attention = "_scaled_dot_product_flash_attention_for_cpu"
    assert selective["mm"] == kept["mm"] < everything["mm"]
    assert selective[attention] == kept[attention] == 0 < everything[attention]
    assert selective["rsqrt"] == everything["rsqrt"] > kept["rsqrt"]
