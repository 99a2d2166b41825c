"""How examples lie in a batch, and what they cost there."""

from collections.abc import Sequence
from enum import Enum

from xlr.config import SHARED_PROMPT
from xlr.records import Example


class Layout(Enum):
    """How examples lie in a batch."""

    SHARED = "one row, a prompt once for all its responses"
    SEQUENCES = "one row, whole sequences"
    PADDED = "a right-padded row a response"


def layout(attn_implementation: str) -> Layout:
    """The layout that an attention implementation reads."""
    if attn_implementation == SHARED_PROMPT:
        return Layout.SHARED
    return Layout.SEQUENCES if "flash" in attn_implementation else Layout.PADDED


def batch_shape(examples: Sequence[Example], attn_implementation: str) -> tuple[list[int], list[int] | None]:
    """What examples cost in a batch, as `batching` counts it: `(lengths, rows)`, rows None where they are packed."""
    if layout(attn_implementation) is Layout.SHARED:
        return [example.num_tokens for example in examples], None
    if layout(attn_implementation) is Layout.SEQUENCES:
        return [example.num_tokens + (len(example.responses) - 1) * len(example.prompt) for example in examples], None
    widths = [len(example.prompt) + max(map(len, example.responses)) - 1 for example in examples]
    return widths, [len(example.responses) for example in examples]
