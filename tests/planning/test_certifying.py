"""What a certificate takes beside its iteration."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from tests.planning.test_work import H100, SPANISH, setting
from xlr.pipeline import Stage
from xlr.planning import certifying
from xlr.planning.planfile import CertificatePlan
from xlr.planning.setting import Setting
from xlr.planning.work import ESTIMATES

STAGES = [Stage(name, 1) for name in ("generate", "score", "train")] + [Stage("evaluate", 0)]


def cost(own: Setting, factor: float = 1.0) -> CertificatePlan | None:
    """Of a run whose stages take `factor` times what their formulas say."""
    planner: Any = SimpleNamespace(
        context=SimpleNamespace(config=own.config),
        stages=STAGES,
        setting=lambda stage: replace(own, iteration=stage.iteration),
    )
    seconds = {str(stage): factor * ESTIMATES[stage.name](planner.setting(stage)).duration for stage in STAGES}
    plans: Any = [{"stage": name, "seconds": own, "took": None} for name, own in seconds.items()]
    return certifying.cost(planner, plans)


def test_its_work_is_two_per_cent_of_an_iteration_at_most() -> None:
    """With 3,000 prompts of each language, as in the paper."""
    found = cost(setting(H100))
    assert found is not None
    assert 0 < found["share"] <= 0.02


def test_it_grows_with_labelled_preferences_and_with_what_corrects_the_run() -> None:
    own = setting(H100)
    plain, labelled = cost(own), cost(replace(own, compared=[replace(SPANISH, prompts=500)]))
    slow = cost(own, factor=2.0)
    assert plain is not None
    assert labelled is not None
    assert slow is not None
    assert labelled["seconds"] > plain["seconds"]
    assert slow["seconds"] == pytest.approx(2 * plain["seconds"])
    assert slow["share"] == pytest.approx(plain["share"])


def test_it_does_not_depend_on_the_number_of_prompts() -> None:
    own = setting(H100)
    fewer = cost(replace(own, lengths={lang: replace(one, prompts=100) for lang, one in own.lengths.items()}))
    whole = cost(own)
    assert fewer is not None
    assert whole is not None
    assert fewer["seconds"] == whole["seconds"]
    assert fewer["share"] > whole["share"]


def test_what_cannot_be_certified_or_timed_has_no_cost() -> None:
    assert cost(setting(H100, languages=["en", "es", "de"], pair={"by": "translations"})) is None
    assert cost(setting(H100, score={"reward": "judge"}, judge={"model": "a-judge"})) is None
