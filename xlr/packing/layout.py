"""Layouts of a batch, and how many tokens each example costs in them."""

from collections.abc import Sequence
from enum import Enum

from xlr.records import Example
from xlr.settings.modelconfig import SHARED_PROMPT


def default_attention(attn_implementation: str) -> str:
    """The attention implementation for generation, which the shared-prompt one cannot do."""
    return "sdpa" if attn_implementation == SHARED_PROMPT else attn_implementation


class Layout(Enum):
    """How examples are arranged in a batch."""

    SHARED = "one packed row, each prompt once for all its responses"
    SEQUENCES = "one packed row of whole sequences"
    PADDED = "one right-padded row per response"


def layout(attn_implementation: str) -> Layout:
    """The layout that an attention implementation expects."""
    if attn_implementation == SHARED_PROMPT:
        return Layout.SHARED
    return Layout.SEQUENCES if "flash" in attn_implementation else Layout.PADDED


def batch_shape(examples: Sequence[Example], attn_implementation: str) -> tuple[list[int], list[int] | None]:
    """The size of each example in a batch: `(lengths, rows)` as the functions of `maths.batching` take them.

    Lengths are in tokens. Rows are None for packed layouts.
    """
    if layout(attn_implementation) is Layout.SHARED:
        return [example.num_tokens for example in examples], None
    if layout(attn_implementation) is Layout.SEQUENCES:
        return [example.num_tokens + (len(example.responses) - 1) * len(example.prompt) for example in examples], None
    widths = [len(example.prompt) + max(map(len, example.responses)) - 1 for example in examples]
    return widths, [len(example.responses) for example in examples]
