"""Sampling tasks hold every response once, in blocks of a language, and the last ones are short."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xlr.records import Prompt, Response
from xlr.run.artifact import Artifact
from xlr.run.rows import write_shards
from xlr.sampling import samplingplan
from xlr.settings.generateconfig import GenerateConfig
from xlr.terminal.progress import Clock


def wanted(prompts: int, samples: int, langs: tuple[str, ...] = ("es", "de")) -> list[tuple[Prompt, int]]:
    return [
        (Prompt(str(number), lang, "x" * number), sample)
        for lang in langs
        for number in range(prompts)
        for sample in range(samples)
    ]


def engine(batch_size: int, backend: str = "vllm") -> GenerateConfig:
    return GenerateConfig.model_validate({"backend": backend, "batch_size": batch_size})


def batches_of(*arguments: Any) -> list[list[int]]:
    """All batches, in the order in which they are handed out."""
    return [batch for own in samplingplan.plan(*arguments).values() for batch in own]


@given(
    prompts=st.integers(1, 30),
    samples=st.integers(1, 4),
    size=st.integers(1, 40),
    shard=st.integers(1, 60),
    backend=st.sampled_from(["vllm", "transformers"]),
    data=st.data(),
)
def test_every_response_is_in_one_batch_of_one_block(
    prompts: int, samples: int, size: int, shard: int, backend: str, data: st.DataObject
) -> None:
    asked = wanted(prompts, samples)
    known = data.draw(st.dictionaries(st.sampled_from([prompt for prompt, _ in asked]), st.floats(0, 1000)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(samplingplan, "ROWS_PER_SHARD", shard)
        blocks = samplingplan.blocks(asked, size)
        batches = batches_of(asked, engine(size, backend), lambda prompt: len(prompt.instruction), known)
    assert sorted(item for batch in batches for item in batch) == list(range(len(asked)))
    assert [item for block in blocks for item in block] == list(range(len(asked)))
    block_of = {item: number for number, block in enumerate(blocks) for item in block}
    for block in blocks:
        assert len({asked[item][0].lang for item in block}) == 1
        assert len(block) <= max(shard, size, samples)
        assert asked[block.start][1] == 0  # all samples of a prompt
    for batch in batches:
        assert len({block_of[item] for item in batch}) == 1
        assert 0 < len(batch) < size + samples if backend == "vllm" else len(batch) <= size


def test_an_engine_begins_with_the_longest_responses_and_its_tasks_are_alike() -> None:
    asked = wanted(40, 2, ("es",))
    expected = {prompt: float(int(prompt.id) ** 2) for prompt, _ in asked}
    first, second, *_ = batches_of(asked, engine(40), lambda _: 0, expected)
    for batch in (first, second):
        lengths = [expected[asked[item][0]] for item in batch]
        assert lengths == sorted(lengths, reverse=True)
    tokens = [sum(expected[asked[item][0]] for item in batch) for batch in (first, second)]
    assert tokens[1] > 0.9 * tokens[0]
    assert [asked[item][0].id for item in first[:4]] == ["39", "39", "37", "37"]  # samples of a prompt stay together


def test_languages_with_long_responses_come_first_and_the_last_tasks_are_halved() -> None:
    asked = wanted(40, 1, ("en", "th", "es", "de", "fr"))
    expected = {prompt: {"th": 900.0, "es": 500.0}.get(prompt.lang, 300.0) for prompt, _ in asked}
    batches = batches_of(asked, engine(20), lambda _: 0, expected)
    assert [asked[batch[0]][0].lang for batch in batches] == ["th"] * 2 + ["es"] * 2 + ["en"] * 2 + ["de"] * 2 + [
        "fr"
    ] * 4
    assert {len(batch) for batch in batches[:8]} == {20}
    assert {len(batch) for batch in batches[8:]} == {10}


def test_transformers_gets_responses_of_similar_length_together() -> None:
    asked = wanted(8, 1, ("es",))
    assert batches_of(asked, engine(4, "transformers"), lambda prompt: len(prompt.instruction), {}) == [
        [7, 6, 5, 4],
        [3, 2, 1, 0],
    ]
    expected = {prompt: 100.0 * (int(prompt.id) % 2) for prompt, _ in asked}
    assert batches_of(asked, engine(4, "transformers"), lambda _: 0, expected) == [[1, 3, 5, 7], [0, 2, 4, 6]]


def test_lengths_are_learnt_from_an_earlier_iteration(tmp_path: Path) -> None:
    folder = tmp_path / "responses"
    prompts = {"es": [Prompt("a", "es", ""), Prompt("new", "es", "")], "de": [Prompt("a", "de", "")]}
    assert samplingplan.learnt(folder, prompts) == {}
    folder.mkdir()
    rows = [Response("a", "es", 0, "", [1] * 4, "stop"), Response("a", "es", 1, "", [1] * 8, "stop")]
    write_shards(folder, "es", Response, [*rows, Response("b", "es", 0, "", [1] * 2, "stop")])
    assert samplingplan.learnt(folder, prompts) == {}  # not finished
    Artifact(tmp_path, folder, "generate", {}, {}).finish(3, {}, Clock())
    assert samplingplan.learnt(folder, prompts) == {prompts["es"][0]: 6.0, prompts["es"][1]: 4.0}


@given(prompts=st.integers(0, 5), each=st.integers(1, 4))
def test_samples_are_the_list_that_they_stand_for(prompts: int, each: int) -> None:
    asked = [Prompt(str(number), "es", "x") for number in range(prompts)]
    plain = [(prompt, sample) for prompt in asked for sample in range(each)]
    samples = samplingplan.Samples(asked, each)
    assert list(samples) == plain
    assert len(samples) == len(plain)
    assert samples[1:4] == plain[1:4]
    assert samples[::-1] == plain[::-1]
