"""Which responses are sampled in one task, and in which order. Measured by `benchmarks/sampling_plan.py`."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

from xlr.maths.batching import Batch, consecutive, dealt
from xlr.records import Prompt
from xlr.run.manifests import manifest_path, part_of, verified
from xlr.run.rows import ROWS_PER_SHARD
from xlr.settings.generateconfig import GenerateConfig

Wanted = Sequence[tuple[Prompt, int]]
"""Prompt and number of the sample, for each response."""


@dataclass(frozen=True)
class Samples(Sequence[tuple[Prompt, int]]):
    """Several responses to every prompt: `Wanted`, without an object for each of a million responses."""

    prompts: Sequence[Prompt]
    each: int

    def __len__(self) -> int:
        return len(self.prompts) * self.each

    @overload
    def __getitem__(self, item: int) -> tuple[Prompt, int]: ...

    @overload
    def __getitem__(self, item: slice) -> list[tuple[Prompt, int]]: ...

    def __getitem__(self, item: int | slice) -> tuple[Prompt, int] | list[tuple[Prompt, int]]:
        if isinstance(item, slice):
            return [self[number] for number in range(*item.indices(len(self)))]
        return self.prompts[item // self.each], item % self.each


_HALVED = 0.2  # of the responses, the last ones: in tasks of half the size, so that no worker waits long at the end


def blocks(wanted: Wanted, batch_size: int) -> list[range]:
    """Consecutive responses of one language with all samples of each prompt: a shard each.

    A block has about as many rows as a shard may hold, and more only if a batch or a prompt has.
    """
    most = batch_size * max(ROWS_PER_SHARD // batch_size, 1)
    found: list[range] = []
    start = 0
    for prompt, own in itertools.groupby(wanted, lambda asked: asked[0]):
        end = start + sum(1 for _ in own)
        last = found[-1] if found else None
        if last and end - last.start <= most and wanted[last.start][0].lang == prompt.lang:
            found[-1] = range(last.start, end)
        else:
            found.append(range(start, end))
        start = end
    return found


def plan(
    wanted: Wanted, generate: GenerateConfig, prompt_tokens: Callable[[Prompt], int], expected: Mapping[Prompt, float]
) -> dict[range, list[Batch]]:
    """Divide responses into batches for the workers. The plan does not depend on the number of workers.

    Blocks with long responses come first, so that the last tasks are short. transformers computes a batch until its
    longest response ends, so responses that are expected to be equally long share one. A vLLM engine runs partly idle
    at the end of a task, so each task begins with its longest responses and has about as much work as the others.

    Args:
        prompt_tokens: counts the tokens of a prompt.
        expected: the tokens that a response to a prompt is expected to have; 0 where nothing is known.

    Returns:
        Each of the `blocks` with its batches of indices of `wanted`; those that are computed first come first.
    """

    def tokens(item: int) -> float:
        return expected.get(wanted[item][0], 0.0)

    def cost(item: int) -> float:
        return prompt_tokens(wanted[item][0]) + tokens(item)

    found: dict[range, list[Batch]] = {}
    done = 0
    by_length = sorted(blocks(wanted, generate.batch_size), key=lambda own: -sum(map(tokens, own)) / len(own))
    for items in by_length:
        if generate.backend == "vllm":
            late = done >= (1 - _HALVED) * len(wanted)
            size = max(generate.batch_size // 2, 1) if late else generate.batch_size
            order = sorted(items, key=tokens, reverse=True)  # stable: a prompt's samples stay together
            found[items] = dealt([[*own] for _, own in itertools.groupby(order, lambda item: wanted[item][0])], size)
        else:
            found[items] = consecutive(sorted(items, key=cost, reverse=True), generate.batch_size)
        done += len(items)
    return found


def learnt(folder: Path, prompts: Mapping[str, Sequence[Prompt]]) -> dict[Prompt, float]:
    """Mean tokens of the responses to each prompt in an earlier iteration; empty if there is none.

    A prompt without responses there is expected to get those of its language's mean.

    Args:
        folder: the responses of the earlier iteration.
        prompts: lang -> the prompts to know about.

    Raises:
        UserError: a file of the earlier iteration was changed.
    """
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    if not manifest_path(folder).is_file():
        return {}
    found: dict[Prompt, float] = {}
    files = verified(folder)
    for lang, own in prompts.items():
        lengths: dict[str, list[int]] = {}
        for name, path in files.items():
            if part_of(name) == lang:
                table = pq.read_table(path, columns=["id", "token_ids"])
                for key, count in zip(
                    table["id"].to_pylist(), pc.list_value_length(table["token_ids"]).to_pylist(), strict=True
                ):
                    lengths.setdefault(key, []).append(count)
        means = {key: sum(counts) / len(counts) for key, counts in lengths.items()}
        if means:
            usual = sum(means.values()) / len(means)
            found |= {prompt: means.get(prompt.id, usual) for prompt in own}
    return found
