"""Calls Slurm's commands and parses their output. No other module calls them."""

import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from xlr.errors import UserError

# Final states. A job in any other state will change: PENDING, RUNNING, COMPLETING, SIGNALING, REQUEUED, ...
_ENDED = (
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "LAUNCH_FAILED", "NODE_FAIL", "OUT_OF_MEMORY"),
    *("PREEMPTED", "REVOKED", "TIMEOUT"),
)
_SECONDS = 60  # timeout of a command; a busy controller answers slowly


@dataclass(frozen=True)
class JobState:
    """What Slurm reports about a job. A field that Slurm does not report is empty."""

    state: str
    reason: str = ""
    elapsed: str = ""
    left: str = ""
    nodes: str = ""
    restarts: int = 0
    exit_code: str = ""
    start: str = ""
    """When it is expected to start, if it waits and the scheduler has planned it."""

    @property
    def active(self) -> bool:
        """Whether the job is pending, running, or will run again."""
        return self.state not in _ENDED


def available() -> bool:
    """Whether this machine has the Slurm commands."""
    return shutil.which("sbatch") is not None and shutil.which("scontrol") is not None


def require() -> None:
    """Check that jobs can be submitted from here.

    Raises:
        UserError: there are no Slurm commands, or the controller does not answer.
    """
    if not available():
        raise UserError(
            "sbatch and scontrol are not on PATH: run this on a login node of the cluster, load its slurm module, "
            "or use `xlr submit --dry-run` to see the jobs"
        )
    answer = _call(["scontrol", "ping"])
    if answer.returncode or "UP" not in answer.stdout:
        raise UserError(f"Slurm's controller does not answer: {_words(answer)}; ask the cluster's administrators")


def submit(command: Sequence[str]) -> str:
    """Run an sbatch command with `--parsable` and return the job's id.

    Raises:
        UserError: Slurm refuses it; the message holds Slurm's own.
    """
    answer = _call(command)
    if answer.returncode:
        raise UserError(f"{shlex.join(command)}\nSlurm refuses: {_words(answer)}")
    return answer.stdout.strip().split(";")[0]


def cancel(jobs: Sequence[str]) -> None:
    """Cancel jobs with one command, so that none starts because a job it depends on ended.

    Raises:
        UserError: Slurm refuses.
    """
    answer = _call(["scancel", *jobs])
    if answer.returncode:
        raise UserError(f"scancel {' '.join(jobs)}: {_words(answer)}")


def partitions() -> str:
    """Names of the cluster's partitions, separated by commas, for messages."""
    return ", ".join(sorted(set(_call(["sinfo", "--noheader", "--format=%R"]).stdout.split())))


def job(number: str) -> JobState | None:
    """What Slurm reports about a job; None if it is unknown.

    scontrol forgets a job some minutes after its end, so sacct is asked then, if it is installed.
    """
    answer = _call(["scontrol", "--oneliner", "show", "job", number])
    if answer.returncode == 0:
        return parse(answer.stdout)
    if shutil.which("sacct") is None:
        return None
    columns = "State,ExitCode,Elapsed,NodeList"
    answer = _call(["sacct", "--allocations", "--noheader", "--parsable2", f"--jobs={number}", f"--format={columns}"])
    if answer.returncode or not answer.stdout.strip():
        return None
    state, exit_code, elapsed, nodes = answer.stdout.strip().splitlines()[-1].split("|")
    return JobState(state.split()[0], "", elapsed, "", nodes, 0, exit_code)


def parse(line: str) -> JobState:
    """Parse the output of `scontrol --oneliner show job`."""
    found = dict(re.findall(r"(?:^|\s)([A-Za-z/]+)=(\S*)", line))
    known = {key: "" if value in ("(null)", "None", "Unknown") else value for key, value in found.items()}
    elapsed, limit = known.get("RunTime", ""), known.get("TimeLimit", "")
    running = known["JobState"] == "RUNNING" and limit not in ("", "UNLIMITED")
    return JobState(
        known["JobState"],
        known.get("Reason", ""),
        elapsed,
        clock(seconds(limit) - seconds(elapsed)) if running else "",
        known.get("NodeList", ""),
        int(known.get("Restarts") or 0),
        known.get("ExitCode", ""),
        known.get("StartTime", "") if known["JobState"] == "PENDING" else "",
    )


def is_over(number: str, restart: int) -> bool:
    """Whether a job's run with this restart count has ended according to Slurm; False if Slurm is not available."""
    if not available():
        return False
    found = job(number)
    return found is not None and (not found.active or found.state == "PENDING" or found.restarts > restart)


def seconds(time: str) -> int:
    """Seconds of a duration as Slurm prints it: `1-02:03:04`, `02:03:04` or `03:04`."""
    days, _, clock_time = time.rpartition("-")
    total = 0
    for part in clock_time.split(":"):
        total = 60 * total + int(part)
    return 86400 * int(days or 0) + total


def limit_seconds(time: str) -> int | None:
    """Seconds of a time limit as sbatch takes it: `M`, `M:S`, `H:M:S`, `D-H`, `D-H:M`, `D-H:M:S`; None for others."""
    if not re.fullmatch(r"([0-9]+-)?[0-9]+(:[0-9]+){0,2}", time):
        return None
    left_out = 2 - time.count(":") if "-" in time else int(":" not in time)  # smaller units
    return seconds(time + ":00" * left_out)


def clock(total: int) -> str:
    """A duration in seconds as Slurm prints it; the inverse of `seconds`."""
    days, rest = divmod(max(total, 0), 86400)
    hours, minutes = divmod(rest // 60, 60)
    return (f"{days}-" if days else "") + f"{hours:02d}:{minutes:02d}:{rest % 60:02d}"


def _call(command: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", f"no answer within {_SECONDS} s")


def _words(answer: "subprocess.CompletedProcess[str]") -> str:
    return " ".join((answer.stderr.strip() or answer.stdout.strip()).split())
