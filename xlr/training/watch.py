"""Warnings during training about metrics that get worse over many steps."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import sqrt
from statistics import fmean, pvariance

WINDOW = 10  # steps per window
_WINDOWS = 3
_LARGEST_ACCURACY_DROP = 0.15
_STANDARD_ERRORS = 2.0
# English accuracies -> how many values are averaged before a comparison.
_ENGLISH = {"lang/en/rewards/accuracies": WINDOW, "eval_lang/en/rewards/accuracies": 1}


class Watch:
    """Reads the metrics of every step and returns warnings. A warning repeats only if the metric gets worse anew."""

    def __init__(self, reference: bool) -> None:
        """Start before the first step.

        Args:
            reference: whether there is a reference, with which chosen responses are compared.
        """
        self._reference = reference
        self._chosen: list[float] = []
        self._english: dict[str, list[float]] = {name: [] for name in _ENGLISH}
        self.warnings: list[str] = []

    def see(self, step: int, values: Mapping[str, float], beta: float) -> list[str]:
        """Read the metrics of one step.

        Returns:
            New warnings, each with a remedy.
        """
        new = []
        # Relative to the reference, because logps/chosen itself varies with the lengths of the responses.
        self._chosen.append(values["rewards/chosen"] / beta)
        below = -fmean(self._chosen[-WINDOW:])
        if self._reference and below > 0 and falls_steadily(self._chosen):
            new.append(
                f"logps/chosen has been falling for {WINDOW * _WINDOWS} steps, now {below:.1f} nats a response below "
                "the reference: the model unlearns what it should prefer; raise nll_weight or "
                "lower learning_rate"
            )
            self._chosen.clear()
        for name, window in _ENGLISH.items():
            if name not in values:
                continue
            self._english[name].append(values[name])
            if drop := accuracy_drop(self._english[name], window):
                new.append(
                    f"{name} is {drop:.2f} below its best: the other languages may be learnt at the expense of "
                    "English; lower learning_rate or stop earlier"
                )
                self._english[name].clear()
        self.warnings += [f"step {step}: {warning}" for warning in new]
        return new


def falls_steadily(values: Sequence[float]) -> bool:
    """Whether the means of the last three windows fall, by more than noise.

    The means of the first and the last window must differ by more than two standard errors.
    """
    if len(values) < WINDOW * _WINDOWS:
        return False
    windows = [values[len(values) - WINDOW * (i + 1) : len(values) - WINDOW * i] for i in reversed(range(_WINDOWS))]
    means = [fmean(window) for window in windows]
    noise = sqrt((pvariance(windows[0]) + pvariance(windows[-1])) / WINDOW)
    falling = all(later < earlier for earlier, later in pairwise(means))
    return falling and means[0] - means[-1] > _STANDARD_ERRORS * noise


def accuracy_drop(values: Sequence[float], window: int) -> float:
    """How far the mean of the last `window` values is below the best such mean; 0 for small drops."""
    means = [fmean(values[end - window : end]) for end in range(window, len(values) + 1)]
    drop = max(means) - means[-1] if means else 0.0
    return drop if drop > _LARGEST_ACCURACY_DROP else 0.0
