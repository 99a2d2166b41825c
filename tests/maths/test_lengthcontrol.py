import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xlr.maths.lengthcontrol import (
    ALPHA_GRID,
    NO_PAIR,
    Rule,
    choose_pairs,
    kept_by_margin,
    length_gaps,
    margin_weights,
    unit_of,
)


def oracle(rewards, lengths, length_control=True, upper_bound=math.inf):
    """(alpha, chosen, rejected, gap) by trying every alpha, with Python floats."""
    best = None
    for step in range(1000 if length_control else 1):
        alpha = step / 1000
        chosen, rejected, gaps = [], [], []
        for reward_row, length_row in zip(rewards, lengths, strict=True):
            penalised = [r - alpha * n for r, n in zip(reward_row, length_row, strict=True)]
            win = lose = -1
            for i, value in enumerate(penalised):
                if value < upper_bound and (win == -1 or value > penalised[win]):
                    win = i
                if lose == -1 or value < penalised[lose]:
                    lose = i
            if win == -1:
                lose = -1
            else:
                gaps.append(length_row[win] - length_row[lose])
            chosen.append(win)
            rejected.append(lose)
        # Sums of integers are exact, and Python and torch round a division the same way.
        gap = abs(sum(gaps)) / len(gaps) if gaps else math.inf
        if best is None or gap < best[3]:
            best = (alpha, chosen, rejected, gap)
    return best


def outcome(rewards, lengths, length_control=True, **rule):
    """The first pair of each prompt."""
    choice = choose_pairs(rewards, lengths, length_control, Rule(**rule))
    return choice.alpha, choice.chosen_PK[:, 0].tolist(), choice.rejected_PK[:, 0].tolist(), choice.length_gap


COARSE = st.integers(-8, 8).map(lambda i: i / 4)  # many ties, also with the upper bound
FINE = st.integers(-3000, 3000).map(lambda i: i / 1000)  # ties on the grid of alphas, apart from rounding
REWARD = st.one_of(COARSE, FINE, st.floats(-50, 50))
LENGTH = st.one_of(st.integers(0, 5), st.integers(0, 400))


@st.composite
def candidates(draw, reward=REWARD, length=LENGTH):
    """Rewards and lengths of a few prompts, each with its own number of candidates."""
    prompts = draw(st.lists(st.lists(st.tuples(reward, length), min_size=1, max_size=5), min_size=1, max_size=5))
    return [[r for r, _ in row] for row in prompts], [[n for _, n in row] for row in prompts]


@settings(max_examples=40, deadline=None)
@given(candidates())
def test_choice_equals_brute_force(drawn):
    assert outcome(*drawn) == oracle(*drawn)


@settings(max_examples=40, deadline=None)
@given(candidates(), st.one_of(COARSE, FINE, st.floats(-60, 60)))
def test_choice_with_an_upper_bound_equals_brute_force(drawn, upper_bound):
    assert outcome(*drawn, upper_bound=upper_bound) == oracle(*drawn, upper_bound=upper_bound)


@settings(max_examples=50, deadline=None)
@given(candidates(), st.one_of(st.just(math.inf), COARSE))
def test_choice_without_length_control_equals_brute_force_at_alpha_0(drawn, upper_bound):
    actual = outcome(*drawn, length_control=False, upper_bound=upper_bound)
    assert actual == oracle(*drawn, length_control=False, upper_bound=upper_bound)
    assert actual[0] == 0.0


@settings(max_examples=20, deadline=None)
@given(candidates(reward=st.just(1.5), length=st.just(7)))
def test_when_all_candidates_are_equal_the_first_is_both_at_alpha_0(drawn):
    prompts = len(drawn[0])
    assert outcome(*drawn) == (0.0, [0] * prompts, [0] * prompts, 0.0)


def test_many_prompts_where_longer_is_better_equal_brute_force():
    generator = random.Random(0)
    lengths = [[generator.randrange(5, 400) for _ in range(8)] for _ in range(30)]
    rewards = [[0.05 * n + generator.gauss(0, 8) for n in row] for row in lengths]
    actual = outcome(rewards, lengths)
    assert actual == oracle(rewards, lengths)
    assert actual[0] > 0
    assert actual[3] < outcome(rewards, lengths, length_control=False)[3]


def test_near_ties_that_float64_rounding_decides_equal_brute_force():
    # With rewards in thousandths and short lengths, penalised rewards often tie on the grid of alphas.
    generator = random.Random(0)
    for _ in range(25):
        lengths = [[generator.randrange(1, 8) for _ in range(4)] for _ in range(3)]
        rewards = [[generator.randrange(-2000, 2000) / 1000 for _ in row] for row in lengths]
        bound = generator.randrange(-1000, 2000) / 1000
        assert outcome(rewards, lengths, upper_bound=bound) == oracle(rewards, lengths, upper_bound=bound)


def test_alpha_is_the_first_that_closes_the_gap():
    # At 0.1 the first two tie at -1, and the longer one wins because its index is lower; at 0.101 it loses.
    assert outcome([[1.0, 0.0, -0.5]], [[20, 10, 10]]) == (0.101, [1], [2], 0.0)


def test_the_smallest_of_equally_good_alphas_is_taken():
    # No alpha changes the only pair, so every gap is 5.
    assert outcome([[900.0, -900.0]], [[10, 5]]) == (0.0, [0], [1], 5.0)


def test_ties_go_to_the_lowest_sample():
    assert outcome([[1.0, 2.0, 2.0, 1.0]], [[3, 3, 3, 3]]) == (0.0, [1], [0], 0.0)


def test_the_gap_is_a_difference_of_means_not_a_mean_of_differences():
    # Chosen is 10 characters longer in one prompt and 10 shorter in the other.
    assert outcome([[900.0, 0.0], [900.0, 0.0]], [[20, 10], [10, 20]])[3] == 0.0


def test_a_candidate_at_the_upper_bound_may_be_rejected_but_not_chosen():
    assert outcome([[3.0, 2.0, 1.0]], [[4, 4, 4]], upper_bound=3.0)[1:3] == ([1], [2])
    assert outcome([[3.0]], [[4]], length_control=False, upper_bound=3.0) == (0.0, [-1], [-1], math.inf)


def test_a_prompt_without_a_pair_does_not_count_for_the_gap():
    rewards, lengths = [[9.0, 9.5], [1.0, 0.0]], [[0, 0], [8, 5]]
    assert outcome(rewards, lengths, length_control=False, upper_bound=5.0) == (0.0, [-1, 0], [-1, 1], 3.0)


def test_the_alpha_grid_is_every_thousandth_below_1():
    assert len(ALPHA_GRID) == 1000
    assert ALPHA_GRID[0] == 0.0
    assert ALPHA_GRID[-1] == 0.999
    assert all(alpha == i / 1000 for i, alpha in enumerate(ALPHA_GRID))


@settings(max_examples=15, deadline=None)
@given(candidates(), st.booleans())
def test_alpha_is_on_the_grid(drawn, length_control):
    choice = choose_pairs(*drawn, length_control=length_control)
    assert choice.alpha in ALPHA_GRID
    gaps = length_gaps(*drawn)
    assert choice.length_gap == gaps[ALPHA_GRID.index(choice.alpha)]
    assert choice.length_gap == (min(gaps) if length_control else gaps[0])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("length_control", [True, False])
def test_rewards_that_are_not_finite_are_refused(bad, length_control):
    with pytest.raises(ValueError, match="not finite"):
        choose_pairs([[1.0, 2.0], [0.0, bad]], [[1, 2], [3, 4]], length_control)


@pytest.mark.parametrize("rewards", [[], [[]], [[1.0], []]])
def test_prompts_without_candidates_are_refused(rewards):
    with pytest.raises(ValueError, match="at least one candidate"):
        choose_pairs(rewards, [[1] * len(row) for row in rewards])


def rejected_by_hand(penalised, win, rule):
    """The rejected candidate by a rule, with Python's own sorting; the chosen one where none is worse."""
    worse = sorted((value, i) for i, value in enumerate(penalised) if value < penalised[win])
    if not worse:
        return win
    if rule == "nearest_mean":
        mean = sum(penalised) / len(penalised)
        return min((i for _, i in worse), key=lambda i: (abs(penalised[i] - mean), i))
    return worse[math.floor(rule * (len(worse) - 1))][1]


QUARTERS = st.integers(-8, 8).map(lambda i: i / 4)


@settings(max_examples=200, deadline=None)
@given(
    candidates(reward=QUARTERS),
    st.sampled_from([0.25, 0.5, 1.0, "nearest_mean"]),
    st.one_of(st.just(math.inf), QUARTERS),
)
def test_other_rules_for_the_rejected_candidate_equal_brute_force(drawn, rule, upper_bound):
    rewards, lengths = drawn
    if rule == "nearest_mean":  # a mean that is exact in binary, so that ties are ties
        rewards = [row[: 1 << (len(row).bit_length() - 1)] for row in rewards]
        lengths = [row[: len(own)] for row, own in zip(lengths, rewards, strict=True)]
    alpha, chosen, rejected, _ = outcome(rewards, lengths, length_control=False, upper_bound=upper_bound, rejected=rule)
    assert alpha == 0.0
    for row, win, lose in zip(rewards, chosen, rejected, strict=True):
        below = [value for value in row if value < upper_bound]
        if not below:
            assert (win, lose) == (-1, -1)
        else:
            assert win == row.index(max(below))
            assert lose == rejected_by_hand(row, win, rule)


@settings(max_examples=60, deadline=None)
@given(candidates(), st.sampled_from([0.25, 0.5, 1.0, "nearest_mean"]))
def test_alpha_balances_the_lengths_under_every_rule(drawn, rule):
    alpha, _, _, gap = outcome(*drawn, rejected=rule)
    gaps = length_gaps(*drawn, Rule(rejected=rule))
    assert gap == min(gaps) == gaps[round(1000 * alpha)]


def test_the_worst_is_the_quantile_0_where_it_is_worse_than_the_chosen():
    rewards, lengths = [[3.0, 1.0, 2.0, 0.5, 2.5]], [[1] * 5]
    found = [outcome(rewards, lengths, length_control=False, rejected=rule)[2] for rule in (0.0, 1e-9, 0.5, 1.0)]
    assert found == [[3], [3], [1], [4]]
    assert outcome(rewards, lengths, length_control=False, rejected="nearest_mean")[2] == [2]  # the mean is 1.8


def pairs_by_hand(penalised, upper_bound, per_prompt):
    """Best with worst, then again without these two, and so on."""
    left, found = list(range(len(penalised))), []
    for _ in range(per_prompt):
        below = [i for i in left if penalised[i] < upper_bound]
        if not below:
            break
        win, lose = max(below, key=lambda i: (penalised[i], -i)), min(left, key=lambda i: (penalised[i], i))
        if win == lose and found:
            break
        found.append((win, lose))
        left = [i for i in left if i not in (win, lose)]
    return found


@settings(max_examples=150, deadline=None)
@given(candidates(reward=COARSE), st.integers(1, 4), st.one_of(st.just(math.inf), COARSE))
def test_several_pairs_of_a_prompt_equal_brute_force(drawn, per_prompt, upper_bound):
    rewards, lengths = drawn
    rule = Rule(upper_bound, per_prompt=per_prompt)
    choice = choose_pairs(rewards, lengths, length_control=False, rule=rule)
    gaps = []
    for own, length, chosen, rejected in zip(
        rewards, lengths, choice.chosen_PK.tolist(), choice.rejected_PK.tolist(), strict=True
    ):
        expected = pairs_by_hand(own, upper_bound, min(per_prompt, max(max(map(len, rewards)) // 2, 1)))
        none = [(NO_PAIR, NO_PAIR)] * (len(chosen) - len(expected))
        assert list(zip(chosen, rejected, strict=True)) == expected + none
        gaps += [length[win] - length[lose] for win, lose in expected]
    assert choice.length_gap == (abs(sum(gaps)) / len(gaps) if gaps else math.inf)


@settings(max_examples=40, deadline=None)
@given(candidates(), st.integers(1, 3), st.sampled_from([0.0, 0.5, "nearest_mean"]))
def test_no_candidate_is_in_two_pairs(drawn, per_prompt, rejected):
    choice = choose_pairs(*drawn, rule=Rule(rejected=rejected, per_prompt=per_prompt))
    for row in zip(choice.chosen_PK.tolist(), choice.rejected_PK.tolist(), strict=True):
        used = [index for pair in zip(*row, strict=True) for index in set(pair) if index != NO_PAIR]
        assert len(used) == len(set(used))
    first = outcome(*drawn, length_control=False, rejected=rejected)
    several = choose_pairs(*drawn, length_control=False, rule=Rule(rejected=rejected, per_prompt=per_prompt))
    assert first[1:3] == (several.chosen_PK[:, 0].tolist(), several.rejected_PK[:, 0].tolist())


@settings(max_examples=30, deadline=None)
@given(candidates(), st.integers(2, 3))
def test_alpha_balances_the_lengths_of_all_pairs(drawn, per_prompt):
    rule = Rule(per_prompt=per_prompt)
    choice, gaps = choose_pairs(*drawn, rule=rule), length_gaps(*drawn, rule)
    assert choice.length_gap == min(gaps) == gaps[ALPHA_GRID.index(choice.alpha)]


@given(st.lists(QUARTERS, max_size=12), st.sampled_from([0.01, 0.1, 0.25, 0.5, 1.0]))
def test_the_largest_the_smallest_or_the_middle_margins_are_kept(margins, share):
    for which in ("largest", "smallest", "middle"):
        kept = kept_by_margin(margins, share, which)
        assert sum(kept) == math.ceil(round(share * len(margins), 9))
        inside, outside = ([m for m, keep in zip(margins, kept, strict=True) if keep is own] for own in (True, False))
        if not inside or not outside:
            continue
        if which == "largest":
            assert min(inside) >= max(outside)
        if which == "smallest":
            assert max(inside) <= min(outside)
        if which == "middle":
            ordered, left_out = sorted(margins), len(outside)
            assert sorted(inside) == ordered[left_out // 2 : left_out // 2 + len(inside)]


def test_a_share_of_a_hundred_pairs_is_its_per_cent():
    assert [sum(kept_by_margin([1.0] * 100, percent / 100)) for percent in range(1, 101)] == [*range(1, 101)]


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=20))
def test_weights_follow_the_margins_and_average_to_1(margins):
    weights = margin_weights(margins)
    assert math.fsum(weights) / len(weights) == pytest.approx(1.0)
    for one, weight in zip(margins, weights, strict=True):
        assert weight == pytest.approx(one * len(margins) / math.fsum(margins) if any(margins) else 1.0)


def test_no_pairs_have_no_weights():
    assert margin_weights([]) == []


def following_length(seed):
    """Rewards of deviation 1 that follow length, and the lengths."""
    draw = random.Random(seed)
    lengths = [[draw.randint(1, 3000) for _ in range(4)] for _ in range(30)]
    return [[draw.gauss(0, 1) + length / 900 for length in row] for row in lengths], lengths


@settings(deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([2.0**-10, 0.5, 8.0, 2.0**13]))  # products with these are exact
def test_rewards_of_another_scale_give_the_same_pairs(seed, factor):
    """Ratings and standardised rewards are not in nats: the grid of alphas follows their scale."""
    rewards, lengths = following_length(seed)
    both = []
    for scale in (1.0, factor):
        own = [[scale * reward for reward in row] for row in rewards]
        both.append(choose_pairs(own, lengths, unit=unit_of([reward for row in own for reward in row])))
    assert both[1].alpha == factor * both[0].alpha
    assert both[1].length_gap == both[0].length_gap
    assert both[1].chosen_PK.tolist() == both[0].chosen_PK.tolist()


def test_in_nats_the_grid_is_too_coarse_for_small_rewards():
    rewards, lengths = following_length(0)
    small = [[reward / 1000 for reward in row] for row in rewards]
    unit = unit_of([reward for row in small for reward in row])
    assert choose_pairs(small, lengths, unit=unit).length_gap < 50
    assert choose_pairs(small, lengths).length_gap > 300
