"""When a training must save because its job ends."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from xlr.training.deadline import Deadline


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    left=st.integers(0, 10_000),
    steps=st.lists(st.floats(0, 500), min_size=1, max_size=5),
    save=st.floats(0, 1000),
)
def test_a_training_that_goes_on_has_time_for_a_step_and_a_save(
    monkeypatch: pytest.MonkeyPatch, left: int, steps: list[float], save: float
) -> None:
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(1_000_000 + left))
    deadline = Deadline(0, now=lambda: 1_000_000)
    deadline.save_seconds = save
    near = [deadline.near(seconds) for seconds in steps][-1]
    assert near == (left < 1.5 * (max(steps) + save) + 30)


def test_before_the_first_save_a_slow_file_system_is_expected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_END_TIME", "1600")
    assert Deadline(96e9, now=lambda: 1210).near(2)  # a checkpoint of 8B takes 240 s
    assert not Deadline(96e9, now=lambda: 1200).near(2)


@pytest.mark.parametrize("end", [None, "", "soon"])
def test_without_a_job_there_is_no_deadline(monkeypatch: pytest.MonkeyPatch, end: str | None) -> None:
    monkeypatch.delenv("SLURM_JOB_END_TIME", raising=False)
    if end is not None:
        monkeypatch.setenv("SLURM_JOB_END_TIME", end)
    assert not Deadline(1e18).near(1e9)
