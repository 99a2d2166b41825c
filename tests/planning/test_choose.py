"""The chosen settings fit, and are no slower; time limits cover the highest estimate."""

from typing import Any

import pytest

from xlr.planning.choose import changed_config, limits
from xlr.planning.planfile import StagePlan
from xlr.settings.config import Config
from xlr.settings.slurmconfig import SlurmConfig


def planned(stage: str, high: float, took: float | None = None) -> StagePlan:
    return {"stage": stage, "high": high, "took": took}  # type: ignore[typeddict-item]


def test_a_limit_covers_the_longest_iteration_of_a_kind_of_job_with_a_margin() -> None:
    plans = [
        planned("generate 1", 3000, took=10.0),
        planned("score 1", 3000, took=10.0),
        planned("generate 2", 1800),
        planned("score 2", 1800),
        planned("train 1", 60),
        planned("train 2", 1501),
        planned("align", 10),
    ]
    jobs = {"generate": "annotate", "score": "annotate", "train": "train", "align": "train"}
    # 1.2 times an hour, and 1.2 times 25 minutes and a second, in half hours.
    assert limits(plans, jobs.__getitem__) == {"annotate": "1:30:00", "train": "1:00:00"}


def test_settings_and_limits_are_put_into_the_configuration() -> None:
    config: Any = Config.model_construct(
        train=Config.model_fields["train"].default, slurm=SlurmConfig.model_validate({"jobs": {"train": {"nodes": 2}}})
    )
    changed = changed_config(config, {"train.micro_batch_tokens": 2048}, {"train": "1:00:00", "annotate": "2:00:00"})
    assert changed.train.micro_batch_tokens == 2048
    assert (changed.slurm.jobs["train"].nodes, changed.slurm.jobs["train"].time) == (2, "1:00:00")
    assert changed.slurm.jobs["annotate"].time == "2:00:00"
    with pytest.raises(AttributeError):
        changed_config(config, {"no.such": 1}, {})
