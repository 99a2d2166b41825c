"""Win rate and length-controlled win rate of pairwise judgements, as AlpacaEval computes them, with bootstrap errors.

Shapes: `N` comparisons, `G` comparisons of gamed baselines, `M` = G + those of N with a judgement, `D` features, `F`
fits that differ in weights or penalty, `K` folds of cross-validation, `P` instructions of a language, `R` weightings of
the instructions: in the first each instruction counts once, the others are bootstrap resamples. Rates are in percent.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

RESAMPLES = 1000
_SEED = 42
_FOLDS = 5
_PENALTIES = torch.logspace(-4, 4, 10, dtype=torch.float64)  # scikit-learn's C: the larger, the weaker
_GAMED_WEIGHT = 0.1
_ROUNDS = 100
_TOLERANCE = 1e-9
_HALVINGS = 10
_DECIMALS = 9  # of a rate in percent; the digits after them depend on the number of threads

# group -> name of the rate -> rate under each weighting, (R,). A group is ALL, AVERAGE or a language.
Estimates = Mapping[str, Mapping[str, Tensor]]
ALL, AVERAGE = "all", "average"


@dataclass(frozen=True)
class Comparisons:
    """Judgements of a model against a baseline.

    `preferences_N` is the probability that the model's answer is better, NaN if the judge failed. `gaps_N` is the
    length of the baseline's answer minus the length of the model's, in characters. `positions_N` is the position of the
    instruction among the instructions of its language.
    """

    langs: tuple[str, ...]
    preferences_N: Tensor
    gaps_N: Tensor
    positions_N: Tensor

    def of(self, lang: str) -> "Comparisons":
        """The comparisons of one language."""
        own = torch.tensor([other == lang for other in self.langs])
        langs = tuple(other for other in self.langs if other == lang)
        return Comparisons(langs, self.preferences_N[own], self.gaps_N[own], self.positions_N[own])


@dataclass(frozen=True)
class Difficulty:
    """AlpacaEval's table: each instruction's difficulty, and judgements of gamed baselines as regularisation data."""

    difficulties_P: Tensor
    gamed_features_GD: Tensor
    gamed_preferences_G: Tensor


def counts(comparisons: Comparisons) -> dict[str, float]:
    """AlpacaEval's standard error of the win rate, wins, ties, losses, failures, number of judgements and tie rate."""
    judged = comparisons.preferences_N[~comparisons.preferences_N.isnan()]
    return {
        "standard_error": 100 * (judged.std() / len(judged) ** 0.5).item(),
        "wins": int((judged > 0.5).sum()),
        "ties": int((judged == 0.5).sum()),
        "losses": int((judged < 0.5).sum()),
        "failed": len(comparisons.preferences_N) - len(judged),
        "total": len(judged),
        "tie_rate": 100 * (judged == 0.5).double().mean().item(),
    }


def estimates(comparisons: Comparisons, difficulty: Difficulty | None) -> Estimates:
    """Both win rates under each weighting: over all comparisons, by language, and averaged over languages.

    A resample takes the same positions in every language and, because the seed is fixed, in every file. Differences
    between files are therefore paired.
    """
    langs = sorted(set(comparisons.langs))
    weightings_RP = _weightings(int(comparisons.positions_N.max()) + 1)
    found = {ALL: rates(comparisons, difficulty, weightings_RP)}
    if len(langs) > 1:
        found |= {lang: rates(comparisons.of(lang), difficulty, weightings_RP) for lang in langs}
        found[AVERAGE] = {name: torch.stack([found[lang][name] for lang in langs]).mean(0) for name in found[ALL]}
    return found


def difference(first: Estimates, second: Estimates) -> Estimates:
    """The second rates minus the first, under each weighting."""
    return {group: {name: second[group][name] - rates_R for name, rates_R in first[group].items()} for group in first}


def describe(rates_R: Tensor) -> dict[str, float]:
    """The rate itself, with its standard error and 95 % interval from the bootstrap resamples."""
    resampled = rates_R[1:][~rates_R[1:].isnan()]
    low, high = resampled.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    found = {"value": rates_R[0].item(), "standard_error": resampled.std().item(), "low": low, "high": high}
    return {name: round(value, _DECIMALS) for name, value in found.items()}


def _weightings(size: int) -> Tensor:
    drawn_RP = torch.randint(size, (RESAMPLES, size), generator=torch.Generator().manual_seed(_SEED))
    once = torch.ones(1, size, dtype=torch.float64)
    resampled = torch.zeros(RESAMPLES, size, dtype=torch.float64).scatter_add_(1, drawn_RP, once.expand(RESAMPLES, -1))
    return torch.cat([once, resampled])


def rates(comparisons: Comparisons, difficulty: Difficulty | None, weightings_RP: Tensor) -> dict[str, Tensor]:
    """Win rate and length-controlled win rate under each weighting.

    Args:
        weightings_RP: how often the instruction at each position counts.

    Returns:
        name of the rate -> rates, `(R,)`.
    """
    weights_RN = weightings_RP[:, comparisons.positions_N]
    judged_N = ~comparisons.preferences_N.isnan()
    judged_RN, preferences_N = weights_RN[:, judged_N], comparisons.preferences_N[judged_N]
    return {
        "win_rate": 100 * (judged_RN @ preferences_N) / judged_RN.sum(1),
        "length_controlled_win_rate": _length_controlled(comparisons, difficulty, weights_RN),
    }


def _length_controlled(comparisons: Comparisons, difficulty: Difficulty | None, weights_RN: Tensor) -> Tensor:
    """The win rate that a logistic regression on the length difference predicts for answers of equal length.

    The scale of lengths and the penalty come from all comparisons and are the same in every resample.

    Source: arXiv 2404.04475, as in the package alpaca_eval: `length_controlled_v1` with the difficulty table,
    `length_controlled_minimal` without it.
    """
    gaps_N = comparisons.gaps_N
    spread = gaps_N.std()
    lengths_N = (gaps_N / spread).tanh() if spread > 0 else torch.zeros_like(gaps_N)
    rest = [torch.ones_like(lengths_N)]
    if difficulty is not None:
        rest.insert(0, difficulty.difficulties_P[comparisons.positions_N])
    features_ND = torch.stack([lengths_N, *rest], 1)
    equal_ND = torch.stack([torch.zeros_like(lengths_N), *rest], 1)

    judged_N = ~comparisons.preferences_N.isnan()
    features_MD, preferences_M = features_ND[judged_N], comparisons.preferences_N[judged_N]
    weights_RM = weights_RN[:, judged_N]
    if difficulty is not None:
        features_MD = torch.cat([difficulty.gamed_features_GD, features_MD])
        preferences_M = torch.cat([difficulty.gamed_preferences_G, preferences_M])
        gamed_RG = torch.full((len(weights_RM), len(difficulty.gamed_preferences_G)), _GAMED_WEIGHT).double()
        weights_RM = torch.cat([gamed_RG, weights_RM], 1)

    penalty = _choose_penalty(features_MD, preferences_M, weights_RM[0])
    coefficients_RD = _fit(features_MD, preferences_M, weights_RM, penalty.expand(len(weights_RM)))
    predicted_RN = (coefficients_RD @ equal_ND.T).sigmoid()
    return 100 * (weights_RN * predicted_RN).sum(1) / weights_RN.sum(1)


def _choose_penalty(features_MD: Tensor, preferences_M: Tensor, weights_M: Tensor) -> Tensor:
    """The penalty with the smallest cross-validated loss.

    The folds are those of scikit-learn's GroupKFold, with each row as its own group.
    """
    size = len(preferences_M)
    folds = min(_FOLDS, size)
    held_KM = (torch.arange(size - 1, -1, -1) % folds) == torch.arange(folds)[:, None]
    train_FM = (weights_M * ~held_KM).repeat(len(_PENALTIES), 1)
    coefficients_FD = _fit(features_MD, preferences_M, train_FM, _PENALTIES.repeat_interleave(folds))
    losses_FM = weights_M * _cross_entropy(coefficients_FD @ features_MD.T, preferences_M)
    held_FM = held_KM.repeat(len(_PENALTIES), 1)
    losses_F = (losses_FM * held_FM).sum(1) / held_FM.sum(1)
    return _PENALTIES[losses_F.view(len(_PENALTIES), folds).mean(1).argmin()]


def _cross_entropy(logits_FM: Tensor, preferences_M: Tensor) -> Tensor:
    return softplus(logits_FM) - preferences_M * logits_FM


def _fit(features_MD: Tensor, preferences_M: Tensor, weights_FM: Tensor, penalties_F: Tensor) -> Tensor:
    """Coefficients `(F, D)` that minimise |b|_1 + C * sum_m weight_m * cross-entropy_m, by a proximal Newton method.

    Source of the objective: scikit-learn's LogisticRegression with an L1 penalty, which alpaca_eval fits.
    """

    def objective(coefficients_FD: Tensor) -> Tensor:
        losses_FM = weights_FM * _cross_entropy(coefficients_FD @ features_MD.T, preferences_M)
        return coefficients_FD.abs().sum(1) + penalties_F * losses_FM.sum(1)

    size, width = features_MD.shape
    squares_ME = (features_MD[:, :, None] * features_MD[:, None, :]).view(size, width * width)
    coefficients_FD = features_MD.new_zeros(len(weights_FM), width)
    value_F = objective(coefficients_FD)
    for _ in range(_ROUNDS):
        chances_FM = (coefficients_FD @ features_MD.T).sigmoid()
        gradient_FD = penalties_F[:, None] * ((weights_FM * (chances_FM - preferences_M)) @ features_MD)
        curvature_FE = penalties_F[:, None] * ((weights_FM * chances_FM * (1 - chances_FM)) @ squares_ME)
        step_FD = _lasso_step(coefficients_FD, gradient_FD, curvature_FE.view(-1, width, width))
        for _ in range(_HALVINGS):
            worse_F = objective(coefficients_FD + step_FD) > value_F
            if not worse_F.any():
                break
            step_FD = torch.where(worse_F[:, None], step_FD / 2, step_FD)
        coefficients_FD = coefficients_FD + step_FD
        value_F = objective(coefficients_FD)
        if step_FD.abs().max() < _TOLERANCE:
            break
    return coefficients_FD


def _lasso_step(coefficients_FD: Tensor, gradient_FD: Tensor, curvature_FDD: Tensor) -> Tensor:
    """The step `(F, D)` that minimises the quadratic model of the loss plus |b + step|_1, by coordinate descent."""
    width = coefficients_FD.shape[1]
    curvature_FDD = curvature_FDD + 1e-9 * torch.eye(width, dtype=torch.float64)  # a feature may be zero in every row
    moved_FD = coefficients_FD.clone()
    for _ in range(20):
        for d in range(width):
            slope_F = gradient_FD[:, d] + (curvature_FDD[:, d] * (moved_FD - coefficients_FD)).sum(1)
            bend_F = curvature_FDD[:, d, d]
            target_F = moved_FD[:, d] - slope_F / bend_F
            moved_FD[:, d] = target_F.sign() * (target_F.abs() - 1 / bend_F).clamp(min=0)
    return moved_FD - coefficients_FD
