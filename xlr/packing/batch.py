"""Examples as batches of tensors, in the layout that the attention implementation expects.

Shapes: `T` tokens that enter the model, `R` rows, `N` predicted response tokens, `S` responses.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from xlr.packing.layout import Layout, layout
from xlr.records import Example


@dataclass(frozen=True)
class Group:
    """Positions of one example on the packed row: `start:prompt_end` is the prompt; each response ends at its end."""

    start: int
    prompt_end: int
    response_ends: tuple[int, ...]


@dataclass(frozen=True)
class PackedBatch:
    """Examples as model input.

    `input_ids_RT` has one of three layouts: one packed row with shared prompts (`groups` is set), one packed row of
    whole sequences (`sequence_lengths_S` is set), or one padded row per response (neither is set).
    `predict_N` are the positions on the flattened R x T axis whose hidden states predict `labels_N`.
    `lengths_S` is the number of labels of each response, in the order of the examples.
    `counted_RT` is true once for each token of an example: not for padding, nor for further copies of a prompt.
    """

    input_ids_RT: Tensor
    position_ids_RT: Tensor
    predict_N: Tensor
    labels_N: Tensor
    lengths_S: Tensor
    counted_RT: Tensor
    groups: tuple[Group, ...] | None = None
    sequence_lengths_S: tuple[int, ...] | None = None

    def to(self, device: torch.device) -> "PackedBatch":
        """Copy the batch to a device."""
        moved: dict[str, Any] = {
            name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **moved)


def pack(examples: Sequence[Example]) -> PackedBatch:
    """Pack examples into one row without padding: each prompt once, followed by its responses."""
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
            # The prompt's last token predicts the first response token. The terminator is a label only.
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
        torch.ones(1, len(input_ids), dtype=torch.bool),
        tuple(groups),
    )


def _rows(examples: Sequence[Example]) -> list[tuple[tuple[int, ...], tuple[int, ...], bool]]:
    """Prompt and response of each response, and whether it is the first one of its prompt."""
    return [
        (example.prompt, response, number == 0)
        for example in examples
        for number, response in enumerate(example.responses)
    ]


def concatenate(examples: Sequence[Example]) -> PackedBatch:
    """Pack whole sequences (prompt and response) into one row without padding, for flash attention's varlen kernels.

    Positions restart at 0 with every sequence.
    """
    rows = _rows(examples)
    input_ids: list[int] = []
    positions: list[int] = []
    predict: list[int] = []
    counted: list[bool] = []
    for prompt, response, first in rows:
        tokens = (*prompt, *response[:-1])
        counted += [first] * len(prompt) + [True] * (len(response) - 1)
        predict += range(len(input_ids) + len(prompt) - 1, len(input_ids) + len(tokens))
        positions += range(len(tokens))
        input_ids += tokens
    return PackedBatch(
        torch.tensor([input_ids]),
        torch.tensor([positions]),
        torch.tensor(predict),
        torch.tensor([token for _, response, _ in rows for token in response]),
        torch.tensor([len(response) for _, response, _ in rows]),
        torch.tensor([counted]),
        sequence_lengths_S=tuple(len(prompt) + len(response) - 1 for prompt, response, _ in rows),
    )


def pad(examples: Sequence[Example]) -> PackedBatch:
    """One right-padded row per response, for attention implementations that do not support packed rows.

    Padding is on the right and attention is causal, so no attention mask is needed.
    """
    rows = _rows(examples)
    width = max(len(prompt) + len(response) - 1 for prompt, response, _ in rows)
    input_ids_RT = torch.zeros(len(rows), width, dtype=torch.long)
    counted_RT = torch.zeros(len(rows), width, dtype=torch.bool)
    predict: list[int] = []
    for row, (prompt, response, first) in enumerate(rows):
        tokens = (*prompt, *response[:-1])
        input_ids_RT[row, : len(tokens)] = torch.tensor(tokens)
        counted_RT[row, 0 if first else len(prompt) : len(tokens)] = True
        predict += range(row * width + len(prompt) - 1, row * width + len(tokens))
    return PackedBatch(
        input_ids_RT,
        torch.arange(width).expand(len(rows), -1),
        torch.tensor(predict),
        torch.tensor([token for _, response, _ in rows for token in response]),
        torch.tensor([len(response) for _, response, _ in rows]),
        counted_RT,
    )


_LAYOUTS = {Layout.SHARED: pack, Layout.SEQUENCES: concatenate, Layout.PADDED: pad}


def batch(examples: Sequence[Example], attn_implementation: str) -> PackedBatch:
    """Examples as a batch in the layout that an attention implementation expects."""
    return _LAYOUTS[layout(attn_implementation)](examples)
