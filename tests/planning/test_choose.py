"""The chosen settings fit, and are no slower; time limits cover the highest estimate."""

from typing import Any

from xlr.planning.choose import limits, with_limits
from xlr.planning.planfile import StagePlan
from xlr.settings.config import Config
from xlr.settings.slurmconfig import SlurmConfig


def planned(stage: str, high: float, took: float | None = None) -> StagePlan:
    return {"stage": stage, "seconds": 1.0, "high": high, "took": took}  # type: ignore[typeddict-item]


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


def test_a_kind_of_job_with_an_untimed_stage_has_no_limit() -> None:
    plans = [planned("evaluate 1", 600), {**planned("judge 1", 0.0), "seconds": 0.0}, planned("train 1", 600)]
    jobs = {"evaluate": "evaluate", "judge": "evaluate", "train": "train"}
    assert limits(plans, jobs.__getitem__) == {"train": "0:30:00"}


def test_limits_are_put_into_the_jobs_of_the_configuration() -> None:
    config: Any = Config.model_construct(slurm=SlurmConfig.model_validate({"jobs": {"train": {"nodes": 2}}}))
    jobs = with_limits(config, {"train": "1:00:00", "annotate": "2:00:00"}).slurm.jobs
    assert (jobs["train"].nodes, jobs["train"].time) == (2, "1:00:00")
    assert jobs["annotate"].time == "2:00:00"
