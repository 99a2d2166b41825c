import hashlib
import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import TopPLogitsWarper

from xlr.maths.sampling import draw, nucleus
from xlr.sampling.responses import row_seed

BELOW_ONE = 0.9999999999999999  # the largest float64 below 1
LOGIT = st.one_of(st.floats(-20, 20, width=32), st.just(-math.inf))
ROW = st.lists(LOGIT, min_size=1, max_size=8).filter(lambda row: max(row) > -math.inf)
UNIFORM = st.one_of(st.floats(0, 1, exclude_max=True), st.sampled_from([0.0, 0.5, BELOW_ONE]))


def draw_row(row: list[float], uniforms: list[float]) -> list[int]:
    """Draw from one distribution with several uniforms."""
    logits_BV = torch.tensor(row, dtype=torch.float32).expand(len(uniforms), -1)
    return draw(logits_BV, torch.tensor(uniforms, dtype=torch.float64)).tolist()


def probabilities(row: list[float]) -> list[float]:
    top = max(row)
    weights = [math.exp(x - top) if x > -math.inf else 0.0 for x in row]
    total = math.fsum(weights)
    return [weight / total for weight in weights]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(ROW, UNIFORM), min_size=1, max_size=4))
def test_draw_equals_a_loop_over_cumulative_sums(rows):
    width = max(len(row) for row, _ in rows)
    padded = [row + [-math.inf] * (width - len(row)) for row, _ in rows]
    uniforms = [uniform for _, uniform in rows]
    tokens = draw(torch.tensor(padded), torch.tensor(uniforms, dtype=torch.float64)).tolist()
    for token, row, uniform in zip(tokens, padded, uniforms, strict=True):
        below, accepted = 0.0, []
        for candidate, probability in enumerate(probabilities(row)):
            # At a boundary, float32 and float64 may round differently, so the tokens on both sides are accepted.
            if probability > 0 and below - 1e-6 <= uniform < below + probability + 1e-6:
                accepted.append(candidate)
            below += probability
        assert token in accepted


@pytest.mark.parametrize(
    ("uniform", "token"),
    [(0.0, 0), (0.4999, 0), (0.5, 1), (0.7499, 1), (0.75, 3), (0.8749, 3), (0.875, 4), (BELOW_ONE, 4)],
)
def test_a_boundary_belongs_to_the_higher_token(uniform, token):
    halves = [0.0, math.log(0.5), -math.inf, math.log(0.25), math.log(0.25)]  # 1/2, 1/4, 0, 1/8, 1/8
    # float32 logits would move the boundaries by 1e-8
    logits_BV = torch.tensor([halves], dtype=torch.float64)
    slack = 1e-12 if uniform in (0.5, 0.75, 0.875) else 0.0
    assert draw(logits_BV, torch.tensor([uniform + slack], dtype=torch.float64)).tolist() == [token]


def test_equal_halves_split_exactly_at_one_half():
    assert draw_row([3.0, 3.0], [0.0, 0.4999999, 0.5, BELOW_ONE]) == [0, 0, 1, 1]


@settings(max_examples=50, deadline=None)
@given(ROW, st.lists(UNIFORM, max_size=5))
def test_excluded_tokens_are_never_drawn(row, uniforms):
    for token in draw_row(row, [0.0, BELOW_ONE, *uniforms]):
        assert row[token] > -math.inf


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 400), st.integers(0, 400), UNIFORM)
def test_the_only_allowed_token_is_always_drawn(before, after, uniform):
    row = [-math.inf] * before + [-7.5] + [-math.inf] * after
    assert draw_row(row, [0.0, uniform, BELOW_ONE]) == [before] * 3


def test_tokens_whose_probability_underflows_to_0_are_never_drawn():
    assert draw_row([-1e4, 0.0, -1e4, 0.0, -1e4], [0.0, BELOW_ONE]) == [1, 3]


@pytest.mark.parametrize("vocab", [3, 10, 1000, 5003])
def test_the_largest_uniform_draws_an_allowed_token_of_a_long_row(vocab):
    logits_BV = torch.randn(20, vocab, generator=torch.Generator().manual_seed(vocab))
    logits_BV[:, -1] = -math.inf
    tokens_B = draw(logits_BV, torch.full((20,), BELOW_ONE, dtype=torch.float64))
    assert tokens_B.max() < vocab - 1


@pytest.mark.parametrize("row", [[0.0, 1.0, 2.0], [2.0, -math.inf, 0.5, 0.5, -3.0], [1.0]])
def test_frequencies_over_evenly_spaced_uniforms_are_the_softmax(row):
    n = 2000
    tokens = draw_row(row, [(i + 0.5) / n for i in range(n)])
    for token, probability in enumerate(probabilities(row)):
        assert abs(tokens.count(token) - n * probability) <= 1


@settings(max_examples=30, deadline=None)
@given(st.lists(ROW, min_size=1, max_size=4), UNIFORM)
def test_a_row_is_drawn_independently_of_its_batch(rows, uniform):
    width = max(map(len, rows))
    padded = [row + [-math.inf] * (width - len(row)) for row in rows]
    uniforms = [uniform] * len(rows)
    together = draw(torch.tensor(padded), torch.tensor(uniforms, dtype=torch.float64)).tolist()
    assert together == [draw_row(row, [uniform])[0] for row in padded]


@settings(max_examples=100, deadline=None)
@given(ROW, st.floats(0.01, 1))
@example([-5.9e-27, 0.0], 0.5)  # other logits, equal probabilities
def test_the_nucleus_equals_a_loop_over_the_likeliest_tokens(row, top_p):
    kept = nucleus(torch.tensor([row]), top_p)[0].tolist()
    before, probs = 0.0, probabilities(row)
    for token in sorted(range(len(row)), key=lambda token: -row[token]):
        near = abs(before - top_p) < 1e-6  # float32 may round the other way at the boundary
        same = row.count(row[token]) > 1  # which of equal tokens stays is left open
        if probs[token] > 1e-30 and not near and not same:
            assert kept[token] == (row[token] if before < top_p else -math.inf)
        before += probs[token]
    assert max(kept) == max(row)
    assert sum(prob for prob, logit in zip(probs, kept, strict=True) if logit > -math.inf) >= top_p - 1e-6


@pytest.mark.parametrize("spread", [0.01, 1, 3, 8])
@pytest.mark.parametrize("top_p", [1e-6, 0.3, 0.9, 0.999])
def test_the_nucleus_of_a_large_vocabulary_is_that_of_transformers(spread, top_p):
    """From flat rows, whose nucleus is nearly everything, to steep ones."""
    logits_BV = spread * torch.randn(4, 30_000, generator=torch.Generator().manual_seed(1))
    theirs_BV = TopPLogitsWarper(top_p)(None, logits_BV.double())
    differing = (nucleus(logits_BV, top_p) != theirs_BV.float()).sum(-1)
    assert differing.max() <= (2 if spread > 0.1 else 30)  # flat: many probabilities that float32 cannot tell apart


EXAMPLE = {"seed": 42, "iteration": 1, "lang": "es", "prompt_id": "q01", "sample": 0}
PINNED = 1692516610283870343


def test_row_seed_is_pinned():
    assert row_seed(**EXAMPLE) == PINNED
    assert row_seed(**EXAMPLE) == PINNED
    digest = hashlib.sha256(b"42\x1f1\x1fes\x1fq01\x1f0").hexdigest()
    assert int(digest[:16], 16) // 2 == PINNED


@pytest.mark.parametrize(
    "change", [{"seed": 43}, {"iteration": 2}, {"lang": "en"}, {"prompt_id": "q02"}, {"sample": 1}]
)
def test_row_seed_differs_when_one_field_differs(change):
    assert row_seed(**EXAMPLE | change) != row_seed(**EXAMPLE)


def test_row_seed_separates_its_fields():
    assert row_seed(1, 11, "en", "q", 1) != row_seed(11, 1, "en", "q", 1)
    assert row_seed(1, 1, "en", "q1", 1) != row_seed(1, 1, "en", "q", 11)


@settings(max_examples=50, deadline=None)
@given(st.integers(), st.integers(0, 100), st.text(max_size=3), st.text(max_size=10), st.integers(0, 100))
def test_row_seed_is_in_range_and_deterministic(seed, iteration, lang, prompt_id, sample):
    value = row_seed(seed, iteration, lang, prompt_id, sample)
    assert 0 <= value < 2**63
    assert row_seed(seed, iteration, lang, prompt_id, sample) == value
