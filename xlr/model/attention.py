"""A batch of examples as tensors, and the one function that turns it into log-probabilities.

Scoring, reference log-probabilities and training all call `response_logps`.

Shapes: `T` tokens that enter the model, `R` rows, `N` predicted response tokens, `S` responses, `D` hidden size.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from xlr.config import SHARED_PROMPT
from xlr.data.encoding import Layout, layout
from xlr.errors import UserError
from xlr.maths.logprobs import sum_per_response, token_logps
from xlr.records import Example


@dataclass(frozen=True)
class Group:
    """Where one example lies on the packed axis: `start:prompt_end` is its prompt, then its responses' ends."""

    start: int
    prompt_end: int
    response_ends: tuple[int, ...]


@dataclass(frozen=True)
class PackedBatch:
    """Examples as model input.

    `input_ids_RT` is one packed row (with `groups`: prompts shared; with `sequence_lengths_S`: plain sequences one
    after the other), or a padded row a response (with neither).
    `predict_N` are positions on the flattened R x T axis whose hidden state predicts `labels_N`;
    `lengths_S` says how many labels belong to each response, in the order of the examples.
    """

    input_ids_RT: Tensor
    position_ids_RT: Tensor
    predict_N: Tensor
    labels_N: Tensor
    lengths_S: Tensor
    groups: tuple[Group, ...] | None = None
    sequence_lengths_S: tuple[int, ...] | None = None

    def to(self, device: torch.device) -> "PackedBatch":
        """The same batch on a device."""
        moved: dict[str, Any] = {
            name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **moved)


def pack(examples: Sequence[Example]) -> PackedBatch:
    """One row without padding: each prompt once, then its responses, each of which sees the prompt and itself."""
    input_ids: list[int] = []
    positions: list[int] = []
    predict: list[int] = []
    labels: list[int] = []
    lengths: list[int] = []
    groups: list[Group] = []
    for example in examples:
        start = len(input_ids)
        input_ids += example.prompt
        positions += range(len(example.prompt))
        prompt_end = len(input_ids)
        ends = []
        for response in example.responses:
            # The prompt's last token predicts the first response token; the terminator predicts nothing.
            predict += [prompt_end - 1, *range(len(input_ids), len(input_ids) + len(response) - 1)]
            input_ids += response[:-1]
            positions += range(len(example.prompt), len(example.prompt) + len(response) - 1)
            labels += response
            lengths.append(len(response))
            ends.append(len(input_ids))
        groups.append(Group(start, prompt_end, tuple(ends)))
    return PackedBatch(
        torch.tensor([input_ids]),
        torch.tensor([positions]),
        torch.tensor(predict),
        torch.tensor(labels),
        torch.tensor(lengths),
        tuple(groups),
    )


def concatenate(examples: Sequence[Example]) -> PackedBatch:
    """One row without padding of whole sequences, each with its prompt: what flash attention's variable-length
    kernels read. Positions start again with every sequence."""
    rows = [(example.prompt, response) for example in examples for response in example.responses]
    input_ids: list[int] = []
    positions: list[int] = []
    predict: list[int] = []
    for prompt, response in rows:
        tokens = (*prompt, *response[:-1])
        predict += range(len(input_ids) + len(prompt) - 1, len(input_ids) + len(tokens))
        positions += range(len(tokens))
        input_ids += tokens
    return PackedBatch(
        torch.tensor([input_ids]),
        torch.tensor([positions]),
        torch.tensor(predict),
        torch.tensor([token for _, response in rows for token in response]),
        torch.tensor([len(response) for _, response in rows]),
        sequence_lengths_S=tuple(len(prompt) + len(response) - 1 for prompt, response in rows),
    )


def pad(examples: Sequence[Example]) -> PackedBatch:
    """A right-padded row a response, for attention implementations that know nothing of shared prompts.

    Causal attention never looks right, so no mask is needed.
    """
    rows = [(example.prompt, response) for example in examples for response in example.responses]
    width = max(len(prompt) + len(response) - 1 for prompt, response in rows)
    input_ids_RT = torch.zeros(len(rows), width, dtype=torch.long)
    predict: list[int] = []
    for row, (prompt, response) in enumerate(rows):
        tokens = (*prompt, *response[:-1])
        input_ids_RT[row, : len(tokens)] = torch.tensor(tokens)
        predict += range(row * width + len(prompt) - 1, row * width + len(tokens))
    return PackedBatch(
        input_ids_RT,
        torch.arange(width).expand(len(rows), -1),
        torch.tensor(predict),
        torch.tensor([token for _, response in rows for token in response]),
        torch.tensor([len(response) for _, response in rows]),
    )


_LAYOUTS = {Layout.SHARED: pack, Layout.SEQUENCES: concatenate, Layout.PADDED: pad}


def batch(examples: Sequence[Example], attn_implementation: str) -> PackedBatch:
    """Examples in the form that an attention implementation reads."""
    return _LAYOUTS[layout(attn_implementation)](examples)


def shared_prompt_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    groups: tuple[Group, ...] | None = None,
    masks: tuple[Tensor, ...] = (),
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """Causal attention in which a response sees its prompt and itself, not the other responses.

    Args:
        query: `(1, heads, T, head_dim)`; key and value may have fewer heads.
        groups: where examples lie on the row; for plain rows there are transformers' own implementations.
        masks: `response_masks` of the groups.

    Returns:
        `(1, T, heads, head_dim)`, as transformers' attention functions do.
    """
    if softcap is not None:
        raise UserError("xlr_shared_prompt attention has no soft cap: set model.attn_implementation to eager")
    if groups is None:
        raise ValueError("xlr_shared_prompt attention needs the groups of a packed batch")
    if sliding_window is not None and max(map(_longest, groups)) > sliding_window:
        raise UserError(
            f"a sequence is longer than the model's sliding window of {sliding_window} tokens, which "
            "xlr_shared_prompt attention does not have: set model.attn_implementation to sdpa"
        )
    # Cut at once, so that the backward pass joins the pieces instead of adding up tensors full of zeros.
    pieces = [tensor.split(_piece_lengths(groups), 2) for tensor in (query, key, value)]
    each, later_masks = iter(zip(*pieces, strict=True)), iter(masks)
    outputs = []
    for group in groups:
        # The prompt and its first response are one plain causal sequence.
        first_query, first_key, first_value = next(each)
        outputs.append(_attend(first_query, first_key, first_value, scaling))
        prompt = slice(group.prompt_end - group.start)
        prompt_key, prompt_value = first_key[:, :, prompt], first_value[:, :, prompt]
        for _end in group.response_ends[1:]:
            own_query, own_key, own_value = next(each)
            if own_query.shape[2]:  # else nothing but the terminator
                seen_key, seen_value = torch.cat([prompt_key, own_key], 2), torch.cat([prompt_value, own_value], 2)
                outputs.append(_attend(own_query, seen_key, seen_value, scaling, next(later_masks)))
    return torch.cat(outputs, 2).transpose(1, 2).contiguous(), None


def _piece_lengths(groups: Sequence[Group]) -> list[int]:
    """Tokens of the row's pieces: each group's prompt with its first response, then its other responses."""
    return [end - start for group in groups for start, end in pairwise((group.start, *group.response_ends))]


def _longest(group: Group) -> int:
    """Tokens of a group's longest sequence: the prompt and one response."""
    responses = pairwise((group.prompt_end, *group.response_ends))
    return group.prompt_end - group.start + max(end - start for start, end in responses)


def response_masks(groups: Sequence[Group], device: torch.device) -> tuple[Tensor, ...]:
    """What the tokens of every response but a group's first may see: the prompt, and themselves up to their place.

    They are made once a batch, because all layers share them.
    """
    lengths = [
        (end - start, group.prompt_end - group.start)
        for group in groups
        for start, end in pairwise(group.response_ends)
        if end > start  # else nothing but the terminator
    ]
    if device.type == "cuda":  # flash kernels know this bias and need no mask in memory
        return tuple(causal_lower_right(own, prompt + own) for own, prompt in lengths)
    return tuple(torch.ones(own, prompt + own, dtype=torch.bool, device=device).tril(prompt) for own, prompt in lengths)


def _attend(query: Tensor, key: Tensor, value: Tensor, scaling: float | None, mask: Tensor | None = None) -> Tensor:
    """Causal attention of the last queries of a sequence over all its keys; a mask where not all are queries."""
    return scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=True
    )


AttentionInterface.register(SHARED_PROMPT, shared_prompt_attention)


class LogprobHead(nn.Linear):
    """The output embedding as a module that returns log-probabilities instead of logits.

    It is a module of its own so that ZeRO-3 gathers its weight once a pass, not once a chunk.
    """

    def forward(self, hidden_ND: Tensor, labels_N: Tensor) -> Tensor:  # type: ignore[override]
        """Log-probability of each label, float32 `(N,)`."""
        return token_logps(hidden_ND, self.weight, labels_N)


class LogprobModel(nn.Module):
    """A causal language model that returns the log-probability of each response of a batch.

    The model itself is left as it is, its parameters' names under `causal_lm.`; the head shares its weight.
    """

    def __init__(self, causal_lm: Any):
        super().__init__()
        self.causal_lm = causal_lm
        _require_plain_head(causal_lm)
        weight = causal_lm.get_output_embeddings().weight
        with torch.device("meta"):
            self.head = LogprobHead(1, 1, bias=False)
        self.head.weight = weight

    def forward(self, batch: PackedBatch) -> Tensor:
        """Log-probability of each response of the batch, float32 `(S,)`, in nats."""
        hidden_RTD = self.causal_lm.get_decoder()(
            input_ids=batch.input_ids_RT,
            position_ids=batch.position_ids_RT,
            use_cache=False,
            **_attention_arguments(batch),
        ).last_hidden_state
        logps_N = self.head(hidden_RTD.flatten(0, 1)[batch.predict_N], batch.labels_N)
        return sum_per_response(logps_N, batch.lengths_S)


def _attention_arguments(batch: PackedBatch) -> dict[str, Any]:
    """What the attention functions are told beside the tokens."""
    if batch.groups is not None:
        return {"groups": batch.groups, "masks": response_masks(batch.groups, batch.input_ids_RT.device)}
    if batch.sequence_lengths_S is None:
        return {}
    # transformers would work these out from the positions, once a layer and with a synchronisation each.
    ends = torch.tensor((0, *batch.sequence_lengths_S), device=batch.input_ids_RT.device)
    cu_seq_lens = ends.cumsum(0, dtype=torch.int32)
    longest = max(batch.sequence_lengths_S)
    return {
        "cu_seq_lens_q": cu_seq_lens,
        "cu_seq_lens_k": cu_seq_lens,
        "max_length_q": longest,
        "max_length_k": longest,
    }


def _require_plain_head(causal_lm: Any) -> None:
    """Refuse a model whose logits are more than hidden @ weight^T.

    Raises:
        UserError: naming what it adds.
    """
    added = [
        name
        for name in ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier")
        if getattr(causal_lm.config, name, None) not in (None, 1, 1.0)
    ]
    if getattr(causal_lm.get_output_embeddings(), "bias", None) is not None:
        added.append("a bias of the output embedding")
    if added:
        raise UserError(f"models of type {causal_lm.config.model_type} with {', '.join(added)} are not supported")
