"""Pairs of one language from its scores: which response is rejected, which pairs are kept, what is said of others."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xlr.data.quality import penalised
from xlr.records import Prompt, Score
from xlr.rewarding.pairs import averaged, choose, pair_language
from xlr.settings.pairconfig import PairConfig


def scores(*rewards: tuple[str, list[float]]) -> tuple[list[Score], list[Prompt]]:
    """Responses of equal length to some prompts, with these rewards."""
    rows = [
        Score(key, "es", sample, f"{key} {sample} {reward}", "stop", "", reward, 0.0, reward, 3, 10, "es", 0.0)
        for key, own in rewards
        for sample, reward in enumerate(own)
    ]
    return rows, [Prompt(key, "es", "¿?") for key, _ in rewards]


def chosen_and_rejected(section: PairConfig, *rewards: tuple[str, list[float]]) -> list[tuple[str, int, int]]:
    found = choose(section, *scores(*rewards))
    return [(prompt.id, chosen.sample, rejected.sample) for prompt, chosen, rejected in found.pairs]


@pytest.mark.parametrize(
    ("given", "rejected"),
    [
        ({}, 3),
        ({"rejected": "median"}, 4),
        ({"rejected": "nearest_mean"}, 2),
        ({"rejected": "quantile", "rejected_quantile": 1.0}, 1),
        ({"rejected": "quantile", "rejected_quantile": 0.0}, 3),
    ],
)
def test_the_rule_says_which_response_is_rejected(given: dict[str, Any], rejected: int) -> None:
    # The mean is 4.4; those worse than the chosen one are, from the worst on, 3 (0.0), 4 (4.0), 2 (4.5), 1 (5.0).
    rewards = [8.5, 5.0, 4.5, 0.0, 4.0]
    assert chosen_and_rejected(PairConfig(length_control=False, **given), ("a", rewards)) == [("a", 0, rejected)]


def test_the_pairs_with_the_largest_margins_are_kept_and_the_others_counted() -> None:
    rewards = [("a", [1.0, 0.0]), ("b", [9.0, 0.0]), ("c", [5.0, 0.0]), ("d", [2.0, 0.0])]
    section = PairConfig(length_control=False, keep=0.5)
    assert chosen_and_rejected(section, *rewards) == [("b", 0, 1), ("c", 0, 1)]
    pairs, facts = pair_language(section, *scores(*rewards))
    assert [pair.id for pair in pairs] == ["b", "c"]
    assert facts["dropped"] == {"margin not among the largest that pair.keep keeps": 2}


def test_penalties_lower_the_rewards_of_flawed_responses() -> None:
    """The best response is in another language and cut off; without penalties it is chosen."""
    rows, prompts = scores(("a", [5.0, 4.0, 0.0]))
    rows[0] = replace(rows[0], detected_lang="en", finish_reason="length")
    for penalties, chosen in (
        ({}, 0),
        ({"wrong_language": 0.9}, 0),
        ({"wrong_language": 1.1}, 1),
        ({"wrong_language": 0.6, "truncated": 0.6}, 1),  # they add up
        ({"repeated": 9.0}, 0),
    ):
        section = PairConfig.model_validate({"length_control": False, "penalties": penalties})
        pairs, _ = pair_language(section, rows, prompts)
        assert pairs[0].chosen[0]["content"] == rows[chosen].response
        expected = rows[chosen].reward - (sum(penalties.values()) if chosen == 0 and "repeated" not in penalties else 0)
        assert pairs[0].chosen_score == pytest.approx(expected)


@given(st.lists(st.floats(-50, 50), min_size=2, max_size=8), st.floats(0.1, 20), st.integers(0, 255))
def test_a_penalty_is_a_plain_subtraction(rewards: list[float], penalty: float, wrong: int) -> None:
    rows, _ = scores(("a", rewards))
    rows = [replace(row, detected_lang="en" if wrong >> row.sample & 1 else "es") for row in rows]
    found = penalised(rows, {"wrong_language": penalty})
    for row, own in zip(rows, found, strict=True):
        assert own.reward == row.reward - (penalty if row.detected_lang == "en" else 0.0)


@given(st.lists(st.tuples(st.floats(-50, 50), st.integers(1, 900)), min_size=2, max_size=8))
def test_rewards_a_token_keep_their_scale(given: list[tuple[float, int]]) -> None:
    """The plain quotient orders the responses; where all are equally long, nothing changes."""
    rows, _ = scores(("a", [reward for reward, _ in given]))
    rows = [replace(row, num_tokens=tokens) for row, (_, tokens) in zip(rows, given, strict=True)]
    mean = sum(tokens for _, tokens in given) / len(given)
    assert [row.reward for row in averaged(rows)] == pytest.approx([mean * reward / tokens for reward, tokens in given])
    even = [replace(row, num_tokens=7) for row in rows]
    assert [row.reward for row in averaged(even)] == pytest.approx([row.reward for row in rows])


def test_a_long_response_with_a_high_sum_loses_by_its_reward_a_token() -> None:
    rows, prompts = scores(("a", [8.0, 6.0, 1.0]))
    rows = [replace(row, num_tokens=tokens) for row, tokens in zip(rows, (40, 10, 10), strict=True)]
    for per_token, chosen in ((False, 0), (True, 1)):
        pairs, _ = pair_language(PairConfig(length_control=False, per_token=per_token), rows, prompts)
        assert pairs[0].chosen[0]["content"] == rows[chosen].response
    assert pairs[0].chosen_score == pytest.approx(6.0 / 10 * 20)  # the mean length is 20


def test_a_prompt_without_a_worse_response_gives_no_pair() -> None:
    for rule in ("worst", "median", "nearest_mean"):
        section = PairConfig.model_validate({"length_control": False, "rejected": rule})
        found = choose(section, *scores(("a", [1.0, 1.0]), ("b", [1.0, 0.0])))
        assert [prompt.id for prompt, _, _ in found.pairs] == ["b"]
        assert found.dropped["no candidate is worse than the chosen one"] == 1


def test_a_bound_below_all_worse_ones_leaves_nothing_to_reject() -> None:
    section = PairConfig(length_control=False, upper_bound=1.0, rejected="median")
    found = choose(section, *scores(("a", [5.0, 0.5, 3.0])))
    assert (found.pairs, found.dropped["no candidate is worse than the chosen one"]) == ([], 1)


def test_several_pairs_of_a_prompt_are_the_best_with_the_worst_then_the_next() -> None:
    section = PairConfig(length_control=False, per_prompt=3)
    given = ("a", [5.0, 1.0, 4.0, 2.0, 3.0]), ("b", [1.0, 0.0])
    assert chosen_and_rejected(section, *given) == [("a", 0, 1), ("a", 2, 3), ("b", 0, 1)]
    pairs, facts = pair_language(section, *scores(*given))
    assert [(pair.id, pair.number, pair.name) for pair in pairs] == [("a", 0, "a"), ("a", 1, "a #2"), ("b", 0, "b")]
    assert (facts["pairs"], facts["prompts"], facts["dropped"]) == (3, 2, {})


def test_all_responses_are_used_with_half_as_many_pairs() -> None:
    rewards = [float(number % 7) + number / 100 for number in range(10)]
    found = chosen_and_rejected(PairConfig(length_control=False, per_prompt=5), ("a", rewards))
    assert sorted(sample for _, *both in found for sample in both) == list(range(10))
    assert all(rewards[chosen] > rewards[rejected] for _, chosen, rejected in found)


@pytest.mark.parametrize(("which", "kept"), [("largest", ["b"]), ("middle", ["c"]), ("smallest", ["a"])])
def test_clear_middling_or_hard_pairs_are_kept(which: str, kept: list[str]) -> None:
    given = ("a", [1.0, 0.0]), ("b", [9.0, 0.0]), ("c", [5.0, 0.0])
    section = PairConfig.model_validate({"length_control": False, "keep": 0.3, "keep_margins": which})
    pairs, facts = pair_language(section, *scores(*given))
    assert [pair.id for pair in pairs] == kept
    assert facts["dropped"] == {f"margin not among the {which} that pair.keep keeps": 2}


def test_a_share_may_be_of_one_language() -> None:
    given = ("a", [1.0, 0.0]), ("b", [9.0, 0.0])
    for keep, expected in (({"es": 0.5}, 1), ({"de": 0.5}, 2), (0.5, 1)):
        section = PairConfig.model_validate({"length_control": False, "keep": keep})
        assert len(pair_language(section, *scores(*given))[0]) == expected


def test_weights_follow_the_penalised_margins_of_the_pairs_that_are_kept() -> None:
    given = ("a", [1.0, 0.0]), ("b", [9.0, 0.0]), ("c", [3.0, 0.0])
    section = PairConfig(length_control=False, weight="margin", keep=0.6)
    pairs, _ = pair_language(section, *scores(*given))
    assert [(pair.id, pair.weight) for pair in pairs] == [("b", 1.5), ("c", 0.5)]
    plain, _ = pair_language(PairConfig(length_control=False), *scores(*given))
    assert [pair.weight for pair in plain] == [1.0, 1.0, 1.0]
