"""The Slurm jobs of a run: their stages, their dependencies and their sbatch commands."""

import difflib
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.conftest import Cli, missing
from xlr import configfile
from xlr.cluster import slurm as scheduler
from xlr.errors import UserError
from xlr.jobs import graph as jobs
from xlr.jobs import machines, submission
from xlr.jobs.graph import DEFAULTS, Job, layered, options, plan, wants
from xlr.pipeline import Stage
from xlr.run.context import Context
from xlr.run.files import sealed, write_json
from xlr.settings.slurmconfig import SlurmConfig
from xlr.settings.trainconfig import TrainConfig
from xlr.shipped import RECIPES, shipped

GOLDEN = Path(__file__).parents[1] / "golden" / "submit-llama3-8b.txt"


def chain(iterations: int, evaluates: bool = True) -> dict[Stage, list[Stage]]:
    """The stages of a run and the stages that each reads from, like `pipeline.needs`."""
    needs: dict[Stage, list[Stage]] = {Stage("align", 0): []}
    model = Stage("align", 0)
    for iteration in range(iterations + 1):
        if iteration:
            before = [model]
            for name in ("generate", "score", "pair"):
                needs[Stage(name, iteration)] = list(before)
                before = [Stage(name, iteration), model]
            model = Stage("train", iteration)
            needs[model] = before
        if evaluates:
            needs[Stage("evaluate", iteration)] = [model, *([Stage("evaluate", 0)] if iteration else [])]
    return needs


@given(st.integers(1, 5), st.booleans(), st.integers(0, 30))
def test_every_unfinished_stage_is_in_one_job_which_waits_for_its_inputs(
    iterations: int, evaluates: bool, finished: int
) -> None:
    needs = chain(iterations, evaluates)
    todo = dict(list(needs.items())[finished:])
    found = plan(todo, DEFAULTS)
    assert sorted(str(stage) for job in found for stage in job.stages) == sorted(map(str, todo))
    job_of = {stage: job for job in found for stage in job.stages}
    names = [job.name for job in found]
    assert len(set(names)) == len(names)
    for job in found:
        assert all(names.index(name) < names.index(job.name) for name in job.after)
        for stage in job.stages:
            for need in needs[stage]:
                if need in job_of and job_of[need] != job:
                    assert job_of[need].name in job.after


def test_no_other_job_waits_for_an_evaluation() -> None:
    found = plan(chain(2), DEFAULTS)
    assert not any(name.startswith("evaluate") for job in found if job.kind != "evaluate" for name in job.after)
    assert "--nice=100" in options(found[-1], wants(DEFAULTS, "evaluate"))
    assert [job.name for job in found] == [
        *("train-0", "annotate-1", "train-1", "annotate-2", "train-2"),
        *("evaluate-0", "evaluate-1", "evaluate-2"),
    ]


def test_judging_is_in_the_job_of_the_evaluation_or_of_another_kind() -> None:
    needs = chain(1)
    needs[Stage("evaluate", "other")] = [Stage("evaluate", 0)]
    for model in (1, "other"):
        needs[Stage("judge", model)] = [Stage("evaluate", model), Stage("evaluate", 0)]
    found = {job.name: job for job in plan(needs, DEFAULTS)}
    assert found["evaluate-other"].after == ("evaluate-0",)
    command = jobs.command(found["evaluate-other"], DEFAULTS, Path("/run"), [])
    assert command[-4:] == ["/run/slurm/evaluate.sbatch", "/run", "other", "evaluate,judge"]
    apart = layered(DEFAULTS, SlurmConfig.model_validate({"jobs": {"judge": {"stages": ["judge"], "gpus": 0}}}))
    found = {job.name: job for job in plan(needs, apart)}
    assert found["judge-1"].after == ("evaluate-0", "evaluate-1")
    assert jobs.command(found["judge-1"], apart, Path("/run"), [])[-2:] == ["1", "judge"]


def test_kinds_of_jobs_can_be_merged_and_split() -> None:
    merged = SlurmConfig.model_validate({"jobs": {"whole": {"stages": ["generate", "score", "pair", "train"]}}})
    one = layered(DEFAULTS, merged)
    assert [job.name for job in plan(chain(1), one)] == ["whole-0", "whole-1", "evaluate-0", "evaluate-1"]
    (job,) = (job for job in plan(chain(1), one) if job.name == "whole-1")
    run = Path("/run")
    assert jobs.command(job, one, run, [])[-5:] == [
        *("/run/slurm/iteration.sbatch", "/run", "1"),
        *("generate,score,pair", "train"),
    ]
    split = SlurmConfig.model_validate({"jobs": {"judge": {"stages": ["score", "pair"]}, "train": {"nodes": 3}}})
    found = plan(chain(1), layered(DEFAULTS, split))
    assert [job.after for job in found if job.name == "judge-1"] == [("train-0", "annotate-1")]
    shrunk = SlurmConfig.model_validate({"jobs": {"annotate": {"stages": ["generate"]}}})
    with pytest.raises(UserError, match=r"slurm\.jobs: no kind of job has pair, score"):
        plan(chain(1), layered(DEFAULTS, shrunk))
    crossed = SlurmConfig.model_validate({"jobs": {"judge": {"stages": ["score"]}}})
    with pytest.raises(UserError, match=r"slurm\.jobs: annotate, .*judge.* wait for each other"):
        plan(chain(1), layered(DEFAULTS, crossed))


def test_settings_of_a_run_override_the_site_and_those_of_a_kind_override_both() -> None:
    site = SlurmConfig.model_validate({"partition": "gpu", "gpus": 8, "jobs": {"train": {"partition": "big"}}})
    own = SlurmConfig.model_validate({"gpus": "a100:4", "nodes": 2, "jobs": {"evaluate": {"nodes": 1}}})
    slurm = layered(DEFAULTS, site, own)
    assert wants(slurm, "train").partition == "big"
    assert wants(slurm, "annotate").partition == "gpu"
    assert (wants(slurm, "evaluate").nodes, wants(slurm, "train").nodes) == (1, 2)
    (train,) = (job for job in plan(chain(1), slurm) if job.name == "train-1")
    assert options(train, wants(slurm, "train"))[:3] == ["--nodes=2", "--ntasks-per-node=4", "--gres=gpu:a100:4"]


def test_more_tasks_than_cpus_are_refused() -> None:
    slurm = layered(DEFAULTS, SlurmConfig(gpus=8, cpus=4))
    (train,) = (job for job in plan(chain(1), slurm) if job.name == "train-1")
    with pytest.raises(UserError, match=r"slurm\.jobs\.train\.cpus: 4 CPUs are too few for 8 tasks per node"):
        options(train, wants(slurm, "train"))


@pytest.mark.parametrize(
    ("time", "seconds", "lead"),
    [
        ("90", 5400, 600),
        ("30:00", 1800, 360),
        ("1:00:00", 3600, 600),
        ("1-12", 129_600, 600),
        ("1-00:30", 88_200, 600),
        ("2-03:04:05", 183_845, 600),
        ("2:00", 120, 24),
        ("UNLIMITED", None, 600),
        ("1:2:3:4", None, 600),
    ],
)
def test_a_training_job_is_told_early_enough_to_save(time: str, seconds: int | None, lead: int) -> None:
    assert scheduler.limit_seconds(time) == seconds
    slurm = layered(DEFAULTS, SlurmConfig(time=time, options=("--signal=USR1@900",)))
    train, annotate = Job("train", 1, (Stage("train", 1),), ()), Job("annotate", 1, (Stage("score", 1),), ())

    def signals(command: list[str]) -> list[str]:
        return [one for one in command if "signal" in one]

    own = [f"--signal=USR1@{lead}", "--signal=USR1@900"]
    assert signals(jobs.command(train, slurm, Path("run"), [])) == own, "the user's own comes last and counts"
    assert signals(jobs.command(annotate, slurm, Path("run"), [])) == own[1:]
    assert signals(options(train, wants(slurm, "train"))) == own[1:], "the doctor's job has its own, shorter limit"


def test_slurm_mails_failures_and_the_ends_that_no_job_waits_for() -> None:
    slurm = layered(DEFAULTS, SlurmConfig(mail="me@lab.org"))
    found = {job.name: jobs.command(job, slurm, Path("run"), []) for job in plan(chain(2), slurm)}
    ends = {name for name, command in found.items() if "--mail-type=FAIL,END" in command}
    failures = {name for name, command in found.items() if "--mail-type=FAIL" in command}
    assert ends | failures == set(found)
    assert ends == {"evaluate-1", "evaluate-2"}  # they need the answers of evaluate-0
    assert all("--mail-user=me@lab.org" in command for command in found.values())
    assert not any("mail" in part for part in jobs.command(plan(chain(1), DEFAULTS)[0], DEFAULTS, Path("run"), []))
    for bad in ("", "me@lab.org,you@lab.org", "--wrap=id", "me you"):
        with pytest.raises(ValidationError):
            SlurmConfig(mail=bad)


def test_a_range_of_nodes_is_slurms_to_choose_from() -> None:
    """Plans count with the fewest, sums and warnings with the most."""
    slurm = layered(DEFAULTS, SlurmConfig.model_validate({"gpus": 8, "nodes": "2-4", "time": "1:00:00"}))
    (train,) = plan({Stage("train", 1): []}, slurm)
    wanted = wants(slurm, "train")
    assert options(train, wanted)[0] == "--nodes=2-4"
    assert (wanted.fewest_nodes, wanted.most_nodes) == (2, 4)
    warned = jobs.ranks_without_work(train, wanted, TrainConfig(global_batch_size=32))
    assert warned is not None
    assert "32 training ranks" in warned
    shown = jobs.graph([train], slurm).splitlines()
    assert shown[1].split() == ["train-1", "train", "1", "-", "2-4", "32", "1:00:00"]
    assert "4 node-hours, 32 GPU-hours" in shown[2]
    assert machines.of_jobs(configfile.load(RECIPES / "llama3-8b.yaml"), slurm)(Stage("train", 1)).nodes == 2
    assert options(Job("evaluate", 1, (Stage("evaluate", 1),), ()), wanted)[:2] == ["--nodes=2-4", "--gres=gpu:8"]
    few = wanted.model_copy(update={"gpus": 2, "nodes": "1-4"})
    with pytest.raises(UserError, match=r"slurm\.jobs\.train\.nodes: 1-4 with 2 tasks a node, .* set 2-4 or 1-2"):
        options(train, few)
    for refused in ("4-2", "0-2", "1-", "two", "1-2-3"):
        with pytest.raises(ValueError, match="nodes"):
            SlurmConfig.model_validate({"nodes": refused})


@pytest.mark.parametrize(
    ("nodes", "gpus", "pairs", "message"),
    [
        (1, 8, 32, None),
        (2, 8, 32, None),
        (4, 8, 32, "32 training ranks share the 32 pairs of a step, so all wait for the longest pair; use at most 8"),
        (8, 8, 32, "so 32 of them compute nothing; use at most 8 ranks, or set train.global_batch_size to 256"),
        (8, 8, 256, None),
        (1, 1, 1, None),
        (1, 2, 1, "so 1 of them compute nothing; use at most 1 ranks, or set train.global_batch_size to 8"),
    ],
)
def test_more_ranks_than_a_batch_can_feed_are_said(nodes: int, gpus: int, pairs: int, message: str | None) -> None:
    wanted = wants(layered(DEFAULTS, SlurmConfig(nodes=nodes, gpus=gpus)), "train")
    train = TrainConfig(global_batch_size=pairs)
    found = jobs.ranks_without_work(Job("train", 1, (Stage("train", 1),), ()), wanted, train)
    assert found == message if message is None else found and message in found
    assert jobs.ranks_without_work(Job("annotate", 1, (Stage("score", 1),), ()), wanted, train) is None


def test_jobs_without_gpus_are_said() -> None:
    todo = [Job("train", 1, (Stage("train", 1),), ()), Job("annotate", 1, (Stage("score", 1),), ())]

    def warning(**settings: Any) -> str | None:
        return jobs.no_gpus(todo, layered(DEFAULTS, SlurmConfig.model_validate(settings)))

    assert "no job asks for a GPU" in str(warning())
    assert warning(gpus=8) is None
    assert warning(jobs={"train": {"gpus": "a100:4"}}) is None
    assert warning(options=["--gpus-per-node=4"]) is None
    assert jobs.no_gpus([], DEFAULTS) is None


def test_the_dry_run_of_the_llama3_8b_recipe_is_as_recorded(cli_here: Cli, tmp_path: Path) -> None:
    """A dry run needs no Slurm and writes no file. After an intended change, replace the recorded file."""
    command = ["submit", RECIPES / "llama3-8b.yaml", f"run_dir={tmp_path / 'run'}", "--site", RECIPES / "site.yaml"]
    command += ["slurm.nodes=2", "evaluate.prompts={path: heldout}", "--dry-run"]
    result = cli_here(*command, PATH="/nonexistent")
    assert result.returncode == 0, result.stderr
    assert not (tmp_path / "run").exists()
    printed = result.stdout.replace(str(tmp_path / "run"), "RUN").partition("\n--- RUN/slurm/lib.sh\n")[0]
    expected = GOLDEN.read_text(encoding="utf-8")
    difference = difflib.unified_diff(expected.splitlines(), printed.splitlines(), "recorded", "printed", lineterm="")
    assert printed == expected, "\n".join(difference)
    for name in jobs.SCRIPTS:
        assert shipped("slurm", name).read_text(encoding="utf-8") in result.stdout


def test_a_dry_run_prints_commands_that_a_shell_reads_as_they_run(
    tiny_tree: dict[str, Any], write_config: Callable[[Any], Path], tmp_path: Path
) -> None:
    slurm = {
        "partition": "a; touch x",
        "account": "$(id)",
        "constraint": "a|b&c",
        "options": ["--comment=it's `$HOME`"],
    }
    context = Context(
        configfile.load(write_config(tiny_tree | {"slurm": slurm, "run_dir": str(tmp_path / "my 'run'")}))
    )
    printed = submission.describe(context, None).splitlines()
    found = [shlex.split(line) for line in printed if line.startswith("sbatch ")]
    settings = submission.settings(context, None)
    run, todo = context.run.path, submission.plan(context, settings)
    assert found == [jobs.command(job, settings, run, [f"<{name}>" for name in job.after]) for job in todo]
    assert all("--partition=a; touch x" in command for command in found)


@pytest.mark.parametrize("number", ["--user=me", "1 2", "", "1;id"])
def test_a_job_number_that_is_none_is_refused(number: str, tmp_path: Path) -> None:
    job = {"name": "train-1", "id": number, "stages": [], "after": [], "log": ""}
    write_json(tmp_path / "slurm" / "jobs.json", sealed({"run": str(tmp_path), "jobs": [job]}))
    with pytest.raises(UserError, match=r"jobs.json: damaged \(jobs.0.id"):
        submission.submitted(tmp_path)


def test_the_scripts_pass_shellcheck(tmp_path: Path) -> None:
    if not shutil.which("shellcheck"):
        missing("shellcheck is not installed: apt-get install shellcheck")
    folder = shipped("slurm", "lib.sh").parent
    environment = tmp_path / "environment.sh"
    container = "apptainer exec --nv x.sif"
    slurm = SlurmConfig(setup=("module load cuda",), container=container, python="/opt/a b/python", max_restarts=3)
    environment.write_text(jobs.environment(slurm, "python"), encoding="utf-8")
    scripts = [environment, *sorted(folder.glob("*.sbatch"))]
    command = ["shellcheck", "--external-sources", *scripts]
    result = subprocess.run(command, cwd=folder.parent, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
    script = (
        f'set -eu; module() {{ echo "$*"; }}; source {environment}; echo "$python" "${{container[3]}}" $max_restarts'
    )
    printed = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True).stdout
    assert printed == "load cuda\n/opt/a b/python x.sif 3\n"


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"jobs": {"train": {"nodez": 2}}}, "slurm.jobs.train.nodez: unknown key; did you mean nodes?"),
        ({"time": 90}, "slurm.time: input should be a valid string"),
        ({"jobs": {"judge": {"stages": ["judges"]}}}, "slurm.jobs.judge.stages.0: input should be 'generate'"),
        ({"gpus": "eight"}, "slurm.gpus"),
    ],
)
def test_a_bad_setting_is_refused_by_its_key(
    tree: dict[str, Any], message: str, cli_here: Cli, tiny_tree: dict[str, Any], write_config: Callable[[Any], Path]
) -> None:
    result = cli_here("submit", write_config(tiny_tree | {"slurm": tree}), "--dry-run")
    assert result.returncode == 2, result.stdout + result.stderr
    assert message in result.stderr


def test_submit_without_sbatch_names_the_login_node(
    cli_here: Cli, tiny_tree: dict[str, Any], write_config: Callable[[Any], Path], tmp_path: Path
) -> None:
    result = cli_here("submit", write_config(tiny_tree), PATH="/nonexistent")
    assert result.returncode == 2
    assert "sbatch and scontrol are not on PATH: run this on a login node" in result.stderr
    assert not (tmp_path / "run").exists()


def test_the_output_of_scontrol_is_parsed() -> None:
    line = (
        "JobId=7 JobName=run-train-1 UserId=me(1) Priority=4294901755 Nice=0 JobState=RUNNING Reason=None "
        "Dependency=(null) Requeue=1 Restarts=2 ExitCode=0:0 RunTime=1-00:00:30 TimeLimit=2-12:00:00 "
        "Partition=gpu NodeList=n[1-2] BatchHost=n1 Command=/run/slurm/train.sbatch /run 1 train"
    )
    found = scheduler.parse(line)
    assert (found.state, found.reason, found.restarts, found.nodes) == ("RUNNING", "", 2, "n[1-2]")
    assert (found.elapsed, found.left) == ("1-00:00:30", "1-11:59:30")
    assert found.active
    waiting = scheduler.parse(f"{line} StartTime=2026-11-30T08:00:00".replace("RUNNING", "PENDING"))
    assert (waiting.start, scheduler.parse(f"{line} StartTime=2026-11-30T08:00:00").start) == (
        "2026-11-30T08:00:00",
        "",
    )
    assert scheduler.parse(f"{line} StartTime=Unknown".replace("RUNNING", "PENDING")).start == ""
    ended = scheduler.parse(line.replace("RUNNING Reason=None", "FAILED Reason=NonZeroExitCode"))
    assert (ended.active, ended.left, ended.reason) == (False, "", "NonZeroExitCode")


def test_the_time_limits_of_a_chain_are_added_up() -> None:
    """Along its longest path; nodes and GPUs for all jobs, also those beside it."""

    def total(**settings: Any) -> str:
        slurm = layered(DEFAULTS, SlurmConfig.model_validate(settings))
        return jobs.graph(plan(chain(1), slurm), slurm).splitlines()[-1]

    kinds = {"train": {"time": "1-0", "nodes": 2}, "evaluate": {"time": "30"}}
    path = 24 + 1.5 + 24 + 0.5  # train-0, annotate-1, train-1, evaluate-1
    nodes = 2 * 24 + 1.5 + 2 * 24 + 0.5 + 0.5
    assert total(time="1:30:00", jobs=kinds).startswith(
        f"time limits: {path:g} hours one after the other, {nodes:g} node-hours; "
    )
    assert f" {nodes:g} node-hours, {4 * nodes:g} GPU-hours; " in total(time="1:30:00", jobs=kinds, gpus="a100:4")
    assert "1,000 hours" in total(time="250:00:00")
    for none in ({}, {"time": "0"}, {"time": "UNLIMITED"}):
        assert total(**none) == "time limits: no sum, because train, annotate, evaluate jobs have no slurm.time"
    assert total(jobs=kinds) == "time limits: no sum, because annotate jobs have no slurm.time"
    assert "GPUs" in jobs.graph([], DEFAULTS)


SLURM = {
    "sbatch": '[[ "$*" = *--test-only* ]] || { echo x >>"$0.ids"; wc -l <"$0.ids"; }',
    "scontrol": """
        case $1:${4-} in
          ping:*) echo UP ;;
          *:1) echo "JobId=1 JobState=PENDING Reason=Resources StartTime=2026-12-01T08:30:00" ;;
          *) echo "JobId=$4 JobState=PENDING Reason=Dependency StartTime=Unknown" ;;
        esac""",
}


def test_submit_prints_the_graph_and_when_slurm_expects_to_start(
    cli_here: Cli, tiny_tree: dict[str, Any], write_config: Callable[[Any], Path], tmp_path: Path
) -> None:
    """With commands in place of Slurm's that accept every job and have planned the first."""
    for name, text in SLURM.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n", encoding="utf-8")
        (tmp_path / name).chmod(0o700)
    config = write_config(tiny_tree | {"slurm": {"time": "01:00:00", "nodes": 2}})
    result = cli_here("submit", config, PATH=f"{tmp_path}:/usr/bin:/bin")
    assert result.returncode == 0, result.stderr
    context = Context(configfile.load(config))
    settings = submission.settings(context, None)
    assert result.stdout.startswith(jobs.graph(submission.plan(context, settings), settings))
    assert "time limits: 3 hours one after the other, 8 node-hours; " in result.stdout
    submitted = [line for line in result.stdout.splitlines() if re.match("[0-9]", line)]
    assert submitted[0] == "1  annotate-1  expected to start at 2026-12-01 08:30:00"
    assert submitted[1:] == ["2  train-1", "3  evaluate-0", "4  evaluate-1"]
