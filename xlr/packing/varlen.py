"""Attention of all pieces of a packed row in one call, with the keys of each piece's prompt gathered before it.

A piece is a prompt with its first response, or a later response. Its queries are consecutive tokens of the row; its
keys are the tokens that it may see: its prompt's and its own. On GPUs one call replaces dozens of small ones a layer.

Shapes: `T` tokens of the row, `K` keys of all pieces, `P` pieces, `H` query heads, `G` key heads, `D` head size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention

from xlr.packing.batch import Group


@dataclass(frozen=True)
class Pieces:
    """Where the queries and the keys of each piece are. All layers share them, so they are made once a batch."""

    keys_K: Tensor
    """For each key, its position on the row, piece after piece."""
    query_ends: Tensor
    """int32 `(P + 1,)`: where each piece's queries end on the row, after a zero."""
    key_ends: Tensor
    """int32 `(P + 1,)`: where each piece's keys end in `keys_K`, after a zero."""
    most_queries: int
    most_keys: int


def pieces(groups: Sequence[Group], device: torch.device) -> Pieces:
    """The pieces of a packed row. Responses that are only a terminator have no queries and are left out."""
    keys: list[int] = []
    query_ends, key_ends = [0], [0]
    for group in groups:
        for number, (start, end) in enumerate(pairwise((group.start, *group.response_ends))):
            if end > start:
                keys += () if number == 0 else range(group.start, group.prompt_end)
                keys += range(start, end)
                query_ends.append(end)
                key_ends.append(len(keys))
    most = [max(end - start for start, end in pairwise(ends)) for ends in (query_ends, key_ends)]
    ends_2P = torch.tensor([query_ends, key_ends], dtype=torch.int32, device=device)
    return Pieces(torch.tensor(keys, device=device), ends_2P[0], ends_2P[1], *most)


def attend(query: Tensor, key: Tensor, value: Tensor, where: Pieces, scaling: float | None) -> Tensor:
    """Causal attention of each piece to its keys.

    Args:
        query: `(1, H, T, D)`; key and value `(1, G, T, D)`, where G divides H.
        scaling: factor of the logits; None for `1 / sqrt(D)`.

    Returns:
        `(1, T, H, D)`.
    """
    query_THD, key_TGD, value_TGD = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    attention = varlen_attn if query.is_cuda else plain_varlen
    found = attention(
        query_THD.contiguous(),
        key_TGD.index_select(0, where.keys_K),
        value_TGD.index_select(0, where.keys_K),
        where.query_ends,
        where.key_ends,
        where.most_queries,
        where.most_keys,
        scale=scaling,
        window_size=(-1, 0),  # causal: the last query sees all keys of its piece
        enable_gqa=True,
    )
    assert isinstance(found, Tensor)  # varlen_attn returns more if it is asked to
    return found[None]


def plain_varlen(
    query_THD: Tensor,
    key_KGD: Tensor,
    value_KGD: Tensor,
    query_ends: Tensor,
    key_ends: Tensor,
    most_queries: int,
    most_keys: int,
    *,
    scale: float | None,
    window_size: tuple[int, int],
    enable_gqa: bool,
) -> Tensor:
    """What torch's `varlen_attn` computes on GPUs, as a loop over pieces for other devices.

    Returns:
        `(T, H, D)`.
    """
    assert window_size == (-1, 0)
    outputs = []
    bounds = zip(pairwise(query_ends.tolist()), pairwise(key_ends.tolist()), strict=True)
    for (first_query, end_query), (first_key, end_key) in bounds:
        own_query = query_THD[first_query:end_query].transpose(0, 1)
        own_key, own_value = (tensor[first_key:end_key].transpose(0, 1) for tensor in (key_KGD, value_KGD))
        queries, keys = own_query.shape[1], own_key.shape[1]
        mask = torch.ones(queries, keys, dtype=torch.bool, device=query_THD.device).tril(keys - queries)
        found = scaled_dot_product_attention(
            own_query[None], own_key[None], own_value[None], attn_mask=mask, scale=scale, enable_gqa=enable_gqa
        )
        outputs.append(found[0].transpose(0, 1))
    return torch.cat(outputs)
