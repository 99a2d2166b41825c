"""Attention over packed rows in which several responses share one prompt. Registered with transformers.

Shapes: `T` tokens that enter the model.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from xlr.errors import UserError
from xlr.packing import varlen
from xlr.packing.batch import Group
from xlr.packing.varlen import Pieces
from xlr.settings.modelconfig import SHARED_PROMPT


def shared_prompt_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    groups: tuple[Group, ...] | None = None,
    masks: tuple[Tensor, ...] = (),
    pieces: Pieces | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """Causal attention in which a response attends to its prompt and itself, not to the other responses.

    Args:
        query: `(1, heads, T, head_dim)`; key and value may have fewer heads.
        groups: positions of the examples on the row.
        masks, pieces: see `attention_arguments`.

    Returns:
        `(1, T, heads, head_dim)`, as transformers expects of attention functions.

    Raises:
        UserError: the model needs soft-capped logits, or a sliding window shorter than a sequence, or does not pass
            `groups` on.
    """
    if groups is None:
        raise UserError(
            "this architecture does not tell its attention layers how a row is packed, which xlr_shared_prompt needs: "
            "set model.attn_implementation to sdpa"
        )
    _require_supported(groups, sliding_window, softcap)
    if pieces is not None:
        return varlen.attend(query, key, value, pieces, scaling), None
    # One split for all pieces: its backward pass concatenates them. Slices would each add a full tensor of zeros.
    parts = [tensor.split(_piece_lengths(groups), 2) for tensor in (query, key, value)]
    each, later_masks = iter(zip(*parts, strict=True)), iter(masks)
    outputs = []
    for group in groups:
        # The prompt and its first response are one plain causal sequence.
        first_query, first_key, first_value = next(each)
        outputs.append(_attend(first_query, first_key, first_value, scaling))
        prompt = slice(group.prompt_end - group.start)
        prompt_key, prompt_value = first_key[:, :, prompt], first_value[:, :, prompt]
        for _end in group.response_ends[1:]:
            own_query, own_key, own_value = next(each)
            if own_query.shape[2]:  # empty if the response is only the terminator, which does not enter the model
                seen_key, seen_value = torch.cat([prompt_key, own_key], 2), torch.cat([prompt_value, own_value], 2)
                outputs.append(_attend(own_query, seen_key, seen_value, scaling, next(later_masks)))
    return torch.cat(outputs, 2).transpose(1, 2).contiguous(), None


def _require_supported(groups: Sequence[Group], sliding_window: int | None, softcap: float | None) -> None:
    if softcap is not None:
        raise UserError(
            "xlr_shared_prompt attention does not support soft caps: set model.attn_implementation to eager"
        )
    if sliding_window is not None and max(map(_longest, groups)) > sliding_window:
        raise UserError(
            f"a sequence is longer than the model's sliding window of {sliding_window} tokens, which "
            "xlr_shared_prompt attention does not support: set model.attn_implementation to sdpa"
        )


def _piece_lengths(groups: Sequence[Group]) -> list[int]:
    """Lengths of the row's pieces in tokens: each group's prompt with its first response, then each other response."""
    return [end - start for group in groups for start, end in pairwise((group.start, *group.response_ends))]


def _longest(group: Group) -> int:
    """Length in tokens of a group's longest sequence: the prompt and one response."""
    responses = pairwise((group.prompt_end, *group.response_ends))
    return group.prompt_end - group.start + max(end - start for start, end in responses)


def attention_arguments(groups: tuple[Group, ...], device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Arguments of `shared_prompt_attention` that all layers share.

    On GPUs one call computes all pieces. Its kernel takes no float32. That is computed piece by piece as on CPUs, where
    it is faster, because no keys and values are copied.
    """
    if device.type == "cuda" and dtype != torch.float32:
        return {"groups": groups, "pieces": varlen.pieces(groups, device)}
    return {"groups": groups, "masks": response_masks(groups, device)}


def response_masks(groups: Sequence[Group], device: torch.device) -> tuple[Tensor, ...]:
    """Attention masks, one for every response except the first of each group.

    A token attends to the prompt and to its own response up to its own position. All layers share the masks, so they
    are made once per batch.
    """
    lengths = [
        (end - start, group.prompt_end - group.start)
        for group in groups
        for start, end in pairwise(group.response_ends)
        if end > start  # equal if the response is only the terminator
    ]
    return tuple(torch.ones(own, prompt + own, dtype=torch.bool, device=device).tril(prompt) for own, prompt in lengths)


def _attend(query: Tensor, key: Tensor, value: Tensor, scaling: float | None, mask: Tensor | None = None) -> Tensor:
    """Causal attention. A mask is needed if the queries are only the last tokens of the sequence of keys."""
    return scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=True
    )


AttentionInterface.register(SHARED_PROMPT, shared_prompt_attention)
