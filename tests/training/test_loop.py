"""Training under real DeepSpeed ZeRO equals plain torch, for any number of ranks, batch sizes and interruptions."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, get_scheduler

from tests import tiny
from tests.conftest import Cli, assert_refused, tiny_tree
from tests.rows import read_rows, reseal
from tests.training.conftest import OnlyRank
from tests.waiting import ranks_of, wait_until
from xlr import configfile
from xlr.chat.encoding import ChatEncoder, load_tokenizer
from xlr.cluster.preemption import EXIT_CODE
from xlr.cluster.ranks import Ranks
from xlr.data.preferences import load_preferences
from xlr.data.subsets import hold_out
from xlr.errors import UserError
from xlr.records import Example, ReferenceLogps
from xlr.run.context import Context
from xlr.run.files import read_json
from xlr.run.rows import write_rows
from xlr.settings.modelconfig import SHARED_PROMPT
from xlr.settings.trainconfig import LossType, TrainConfig
from xlr.shipped import RECIPES, shipped
from xlr.training import export, gates, loop, reference
from xlr.training.inputs import Training, TrainingPair, plan_steps
from xlr.training.pairlosses import pair_losses
from xlr.training.step import Trainer, frozen_logps
from xlr.zero import engine

STEPS, BATCH, BETA, RATE, CLIP = 3, 4, 0.1, 1e-4, 1.0
_OWN: dict[str, dict[str, Any]] = {
    "robust": {"label_smoothing": 0.2},
    "exo_pair": {"label_smoothing": 0.2},
    "simpo": {"beta": 2.0, "simpo_gamma": 1.0},
}


@pytest.fixture(scope="module")
def preferences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "preferences.jsonl"
    lines = (RECIPES / "quickstart" / "preferences.jsonl").read_text(encoding="utf-8").splitlines(True)
    path.write_text("".join(lines[: STEPS * BATCH]), encoding="utf-8")
    return path


@pytest.fixture
def align_config(tiny_tree: dict[str, Any], preferences: Path, write_config: Callable[[dict[str, Any]], Path]) -> Path:
    """A configuration for align, the training stage that needs no earlier stage."""
    model = {"initial": tiny_tree["model"]["initial"]}
    align = tiny_tree["train"] | {"preferences": str(preferences), "learning_rate": RATE}
    return write_config(tiny_tree | {"model": model, "align": align})


@pytest.fixture
def align(cli_here: Cli, cli_rank: Cli, align_config: Path) -> Cli:
    """Run `xlr align`: one rank in this process, or several that it starts."""

    def run(*overrides: str) -> "subprocess.CompletedProcess[str]":
        return (cli_here if "align.processes=2" in overrides else cli_rank)("align", align_config, *overrides)

    return run


def weights(run: Path) -> dict[str, Tensor]:
    return load_file(run / "iter0" / "model" / "model.safetensors")


def metrics(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "iter0" / "metrics.jsonl").read_text().splitlines()]


def largest_difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max((one[name].double() - other[name].double()).abs().max().item() for name in one)


def response_logp(model: Any, prompt: tuple[int, ...], response: tuple[int, ...]) -> Tensor:
    logps_TV = model(input_ids=torch.tensor([[*prompt, *response]])).logits[0].log_softmax(-1)
    return sum(logps_TV[len(prompt) - 1 + i, token] for i, token in enumerate(response))  # type: ignore[return-value]


def plain_dpo(logps_12: Tensor, reference_logps_12: Tensor, _lengths_12: Tensor) -> Tensor:
    (chosen, rejected), (reference_chosen, reference_rejected) = logps_12[0], reference_logps_12[0]
    return torch.log(1 + torch.exp(-BETA * (chosen - rejected - (reference_chosen - reference_rejected))))


def plain_torch_training(
    initial: Path, preferences: Path, loss: Callable[[Tensor, Tensor, Tensor], Tensor] = plain_dpo
) -> tuple[dict[str, Tensor], list[float]]:
    """The same training in plain torch: one process, one sequence at a time. It uses only xlr's encoder."""
    encoder = ChatEncoder(load_tokenizer(initial), "initial")
    data = [
        (encoder.prompt_of(one.prompt), encoder.response(one.chosen), encoder.response(one.rejected))
        for one in load_preferences(str(preferences))
    ]
    policy = AutoModelForCausalLM.from_pretrained(initial, attn_implementation="eager").train()
    reference = AutoModelForCausalLM.from_pretrained(initial, attn_implementation="eager").eval()
    optimizer = torch.optim.AdamW(policy.parameters(), lr=RATE, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    schedule = get_scheduler("cosine", optimizer, math.ceil(0.1 * STEPS), STEPS)
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(42 * 1000)).tolist()
    losses = []
    for step in range(STEPS):
        total = torch.zeros(())
        for index in order[step * BATCH : (step + 1) * BATCH]:
            prompt, chosen, rejected = data[index]
            with torch.no_grad():
                fixed = torch.stack([response_logp(reference, prompt, response) for response in (chosen, rejected)])
            logps = torch.stack([response_logp(policy, prompt, response) for response in (chosen, rejected)])
            lengths_12 = torch.tensor([[len(chosen), len(rejected)]])
            total = total + loss(logps[None], fixed[None], lengths_12).sum() - logps[0] / len(chosen)
        optimizer.zero_grad()
        (total / BATCH).backward()
        losses.append(total.item() / BATCH)
        torch.nn.utils.clip_grad_norm_(policy.parameters(), CLIP)
        optimizer.step()
        schedule.step()
    named = {name: parameter.detach() for name, parameter in policy.named_parameters()}
    return named, losses


@pytest.mark.parametrize("processes", [1, 2])
def test_zero3_training_equals_plain_torch(
    processes: int, align: Cli, align_config: Path, preferences: Path, tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    result = align(f"align.processes={processes}")
    assert result.returncode == 0, result.stderr
    expected, losses = plain_torch_training(tiny_models["initial"], preferences)
    assert largest_difference(weights(tmp_path / "run"), expected) < 1e-6
    logged = metrics(tmp_path / "run")
    assert [row["loss"] for row in logged] == pytest.approx(losses, rel=1e-4)
    assert logged[0]["loss"] - logged[0]["nll_loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert logged[0]["rewards/margins"] == pytest.approx(0, abs=1e-5)
    if processes == 2:  # they write to a log
        log = tmp_path / "run" / "logs" / "align-0.log"
        assert re.fullmatch(r"\S+ \S+ INFO xlr: align finished: .*\n", log.read_text(encoding="utf-8"))
        assert "is deprecated" in log.with_suffix(".debug.log").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "overrides",
    [
        ["align.micro_batch_tokens=1"],
        ["align.micro_batch_tokens=100000"],
        ["align.micro_batch_tokens=1", "align.processes=2"],
        ["model.attn_implementation=sdpa"],
        ["align.gradient_checkpointing=true"],
        ["align.gradient_checkpointing=selective"],
        ["align.ds_config=zero3", "align.reference_ds_config=reference"],
        ["align.ds_config=zero2", "align.processes=2"],
        ["align.ds_config=zero2", "align.reference_ds_config=reference", "align.micro_batch_tokens=1"],
    ],
)
def test_batches_ranks_and_recomputation_do_not_change_the_loss(
    overrides: list[str],
    align: Cli,
    align_config: Path,
    preferences: Path,
    tiny_models: dict[str, Path],
    tmp_path: Path,
) -> None:
    result = align(*overrides)
    assert result.returncode == 0, result.stderr
    expected, losses = plain_torch_training(tiny_models["initial"], preferences)
    assert [row["loss"] for row in metrics(tmp_path / "run")] == pytest.approx(losses, rel=1e-5)
    assert largest_difference(weights(tmp_path / "run"), expected) < 1e-5


@pytest.mark.parametrize(
    ("settings", "processes"),
    [
        *(({"loss_type": name} | _OWN.get(name, {}), 1) for name in get_args(LossType)),
        ({"loss_type": ["hinge", "apo_zero"], "loss_weights": [0.5, 2.0]}, 1),
        ({"loss_type": "sigmoid_norm"}, 2),
        ({"loss_type": "simpo"} | _OWN["simpo"], 2),
    ],
    ids=str,
)
def test_every_loss_trains_as_in_plain_torch(
    settings: dict[str, Any],
    processes: int,
    align: Cli,
    preferences: Path,
    tiny_models: dict[str, Path],
    tmp_path: Path,
) -> None:
    """Three steps; tests/training/test_pairlosses.py compares the formulas with TRL's."""
    given = [f"align.{key}={json.dumps(value)}" for key, value in settings.items()]
    result = align(*given, f"align.processes={processes}")
    assert result.returncode == 0, result.stderr
    loss = partial(pair_losses, TrainConfig.model_validate(settings))
    expected, losses = plain_torch_training(tiny_models["initial"], preferences, loss)
    logged = metrics(tmp_path / "run")
    assert [row["loss"] for row in logged] == pytest.approx(losses, rel=1e-4)
    assert largest_difference(weights(tmp_path / "run"), expected) < 1e-5
    assert ("kl" in logged[0]) == (settings["loss_type"] != "simpo")


def test_simpo_opens_no_reference(align: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even a cached one, which no stage computed. Its reward is a mean over tokens."""

    def refused(model: str, *_: object) -> None:
        raise AssertionError(f"opened {model}")

    monkeypatch.setattr(loop, "require_same_model", lambda *_: None)  # it opens the exported model
    monkeypatch.setattr(engine, "open_reference", refused)
    cached = align("align.loss_type=simpo", "align.reference_mode=cached", "align.max_steps=1")
    assert cached.returncode == 0, cached.stderr
    assert "reference" not in read_json(tmp_path / "run" / "iter0" / "model.manifest.json")["inputs"]
    frozen = align("align.loss_type=simpo", "align.max_steps=1", f"run_dir={tmp_path / 'other'}")
    assert frozen.returncode == 0, frozen.stderr
    (row,) = metrics(tmp_path / "other")
    simpo_loss = row["loss"] - row["nll_loss"]
    assert row["rewards/chosen"] == pytest.approx(-BETA * row["nll_loss"], rel=1e-5)
    # The margins are so small that the mean of the losses is the loss of the mean.
    assert simpo_loss == pytest.approx(math.log(1 + math.exp(0.5 - row["rewards/margins"])), rel=1e-3)


def test_simpo_plans_no_reference_stage(cli_here: Cli, align_config: Path) -> None:
    cached = "align.reference_mode=cached"
    refused = cli_here("reference", align_config, cached, "align.loss_type=simpo", "--iteration", 0)
    assert_refused(refused, "not a stage of this run")


def test_weights_that_are_not_one_for_each_loss_are_refused(cli_here: Cli, align_config: Path) -> None:
    refused = cli_here("align", align_config, "align.loss_type=[hinge, ipo]", "align.loss_weights=[1.0]")
    assert_refused(refused, "align.loss_weights: has 1, but align.loss_type names 2; give each loss one weight")


@pytest.mark.parametrize(
    ("tied", "recompute", "zero", "processes"),
    [
        (True, "true", "zero3", 2),
        (False, "true", "zero3", 2),
        (False, "selective", "zero3", 2),
        (False, "true", "zero3_hpz", 4),  # as on two nodes of two GPUs
    ],
)
def test_fully_partitioned_weights_train_the_same(
    tied: bool, recompute: str, zero: str, processes: int, align: Cli, preferences: Path, tmp_path: Path
) -> None:
    """As on many GPUs: every weight is partitioned and gathered for each use, and activations are recomputed."""
    initial = tiny.save(tmp_path / "model", seed=3, tied=tied)
    names = []
    for name in (zero, "reference"):
        tree = json.loads(shipped("ds_configs", f"{name}.json").read_text(encoding="utf-8"))
        tree["zero_optimization"] |= {"stage3_param_persistence_threshold": 0, "stage3_max_live_parameters": 0}
        if "zero_hpz_partition_size" in tree["zero_optimization"]:
            tree["zero_optimization"]["zero_hpz_partition_size"] = 2
        (tmp_path / f"{name}.json").write_text(json.dumps(tree))
        names.append(tmp_path / f"{name}.json")
    settings = [f"model.initial={initial}", f"align.processes={processes}", f"align.gradient_checkpointing={recompute}"]
    settings += [f"align.ds_config={names[0]}", f"align.reference_ds_config={names[1]}"]
    result = align(*settings)
    assert result.returncode == 0, result.stderr
    expected, losses = plain_torch_training(initial, preferences)
    assert [row["loss"] for row in metrics(tmp_path / "run")] == pytest.approx(losses, rel=1e-5)
    assert largest_difference(weights(tmp_path / "run"), expected) < 1e-6


BFLOAT16 = "model.dtype=bfloat16"


def require_bfloat16() -> None:
    """Skip the test where bfloat16 products would take minutes."""
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this processor has no bfloat16 instructions that torch uses")


@pytest.mark.parametrize("recompute", ["false", "selective"])
@pytest.mark.parametrize("processes", [1, 2])
def test_training_in_bfloat16_follows_float32(
    processes: int, recompute: str, align: Cli, preferences: Path, tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    """Policy and reference engines, float32 master weights, recomputation, export."""
    require_bfloat16()
    zero3 = ["align.ds_config=zero3", "align.reference_ds_config=reference"]
    result = align(BFLOAT16, f"align.processes={processes}", f"align.gradient_checkpointing={recompute}", *zero3)
    assert result.returncode == 0, result.stderr
    expected, losses = plain_torch_training(tiny_models["initial"], preferences)
    logged = metrics(tmp_path / "run")
    assert [row["loss"] for row in logged] == pytest.approx(losses, rel=1e-2)
    assert logged[0]["loss"] - logged[0]["nll_loss"] == pytest.approx(math.log(2), abs=1e-5)
    trained = weights(tmp_path / "run")
    assert {tensor.dtype for tensor in trained.values()} == {torch.bfloat16}
    # Half a unit in the last of eight bits, and steps of Adam whose direction rounding turns around.
    assert (
        largest_difference(trained, expected)
        < 2 * RATE * STEPS + max(float(tensor.abs().max()) for tensor in expected.values()) * 2**-8
    )


def test_a_cached_reference_trains_in_bfloat16(align: Cli, cli_here: Cli, align_config: Path, tmp_path: Path) -> None:
    require_bfloat16()
    settings = [BFLOAT16, "align.reference_mode=cached"]
    assert cli_here("reference", align_config, *settings, "--iteration", 0).returncode == 0
    result = align(*settings)
    assert result.returncode == 0, result.stderr
    first = metrics(tmp_path / "run")[0]
    assert first["loss"] - first["nll_loss"] == pytest.approx(math.log(2), abs=2e-2)


def test_torchrun_can_start_the_ranks(align_config: Path, align: Cli, tmp_path: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, "-m", "xlr", "align", str(align_config)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    other = tmp_path / "other"
    assert align("align.processes=2", f"run_dir={other}").returncode == 0
    one, two = weights(tmp_path / "run"), weights(other)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_the_exported_folder_opens_in_transformers(align: Cli, tiny_models: dict[str, Path], tmp_path: Path) -> None:
    assert align("align.max_steps=1").returncode == 0
    folder = tmp_path / "run" / "iter0" / "model"
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.generation_config.eos_token_id is not None
    assert load_tokenizer(folder).chat_template == load_tokenizer(tiny_models["initial"]).chat_template


@pytest.mark.parametrize("processes", [1, 2])
def test_a_cached_reference_trains_the_same(
    processes: int,
    align: Cli,
    cli_here: Cli,
    align_config: Path,
    preferences: Path,
    tiny_models: dict[str, Path],
    tmp_path: Path,
) -> None:
    settings = ["align.reference_mode=cached", f"align.processes={processes}"]
    early = align(*settings)
    assert early.returncode == 2
    assert "iter0/reference: not finished yet; run `xlr reference" in early.stderr
    assert cli_here("reference", align_config, *settings, "--iteration", 0).returncode == 0
    result = align(*settings)
    assert result.returncode == 0, result.stderr
    expected, losses = plain_torch_training(tiny_models["initial"], preferences)
    logged = metrics(tmp_path / "run")
    assert [row["loss"] for row in logged] == pytest.approx(losses, abs=1e-5)
    assert logged[0]["loss"] - logged[0]["nll_loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert largest_difference(weights(tmp_path / "run"), expected) < 1e-5


def test_a_cache_of_other_weights_tokens_or_precision_is_refused(
    align: Cli, cli_here: Cli, align_config: Path, tmp_path: Path
) -> None:
    cached = "align.reference_mode=cached"
    assert cli_here("reference", align_config, cached, "--iteration", 0).returncode == 0
    training = Training(Context(configfile.load(align_config, [cached])), 0)
    pairs = training.pairs
    assert len(reference.load(training, "float32", pairs)) == len(pairs)
    with pytest.raises(UserError, match=r"no log-probabilities of the pair en p01 .* in bfloat16"):
        reference.load(training, "bfloat16", pairs)
    example = pairs[1].example
    retokenized = replace(pairs[1], example=Example(example.prompt[1:], example.responses))
    with pytest.raises(UserError, match=f"of the pair en {pairs[1].id}"):
        reference.load(training, "float32", [pairs[0], retokenized])
    other = tiny.save(tmp_path / "other", seed=9)
    result = align(cached, f"model.initial={other}")
    assert result.returncode == 2
    assert "has changed since" in result.stderr
    # The manifest matches, but the log-probabilities were computed with other weights.
    file = next((tmp_path / "run" / "iter0" / "reference").glob("*.parquet"))
    rows = read_rows(file, ReferenceLogps)
    write_rows(file, ReferenceLogps, [replace(row, key=row.key[::-1]) for row in rows])
    reseal(file.parent)
    with pytest.raises(UserError, match=r"another reference, tokenizer or precision; delete"):
        reference.load(training, "float32", pairs)


MANY = ["align.num_train_epochs=12", "align.save_steps=1"]  # 36 steps


@pytest.fixture(scope="module")
def undisturbed(
    preferences: Path, tiny_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """Number of ranks and precision -> an uninterrupted training of 36 steps."""
    found: dict[tuple[int, str], Path] = {}

    def train(processes: int, dtype: str = "float32") -> Path:
        if (processes, dtype) not in found:
            folder = tmp_path_factory.mktemp("undisturbed")
            tree = tiny_tree.__wrapped__(tiny_models, folder)  # type: ignore[attr-defined]
            align = tree["train"] | {"preferences": str(preferences), "learning_rate": RATE}
            tree |= {"model": {"initial": str(tiny_models["initial"])}, "align": align}
            (folder / "run.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
            command = [sys.executable, "-m", "xlr", "align", str(folder / "run.yaml"), *MANY]
            command += [f"align.processes={processes}", f"model.dtype={dtype}"]
            subprocess.run(command, check=True, capture_output=True, timeout=600)
            found[processes, dtype] = folder / "run"
        return found[processes, dtype]

    return train


def start(align_config: Path, *settings: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "xlr", "align", str(align_config), *MANY, *settings]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finish_as(expected_run: Path, run: Path, again: "subprocess.Popen[str]") -> None:
    """Assert that the resumed training succeeds with weights that are identical to the bit."""
    assert again.wait(timeout=300) == 0, again.stderr and again.stderr.read()
    expected, resumed = weights(expected_run), weights(run)
    assert all(torch.equal(resumed[name], expected[name]) for name in expected)


def kill_9(process: "subprocess.Popen[str]") -> int:
    os.kill(process.pid, signal.SIGKILL)
    return process.wait(timeout=60)


def kill_9_last_rank(process: "subprocess.Popen[str]") -> int:
    ranks_of(process.pid)[-1].kill()
    return process.wait(timeout=60)


@pytest.mark.parametrize(
    ("moment", "kill", "processes"),
    [
        ("step-*", kill_9, 1),
        (".step-*", kill_9, 1),
        (".step-*", kill_9, 2),
        ("step-*", kill_9_last_rank, 2),
    ],
    ids=["between-checkpoints", "while-one-is-written", "while-two-ranks-write-one", "one-rank"],
)
def test_a_killed_training_continues_to_the_same_weights(
    moment: str,
    kill: Callable[[Any], int],
    processes: int,
    align_config: Path,
    undisturbed: Callable[..., Path],
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    checkpoints = run / "iter0" / "model.checkpoints"
    process = start(align_config, f"align.processes={processes}")
    wait_until(lambda: list(checkpoints.glob(moment)), moment)
    assert kill(process) != 0
    assert not (run / "iter0" / "model.manifest.json").exists(), "killed too late"

    finish_as(undisturbed(processes), run, start(align_config, f"align.processes={processes}"))
    assert [row["step"] for row in metrics(run)] == list(range(1, 12 * STEPS + 1))
    assert not checkpoints.exists()


@pytest.mark.parametrize(
    ("number", "whom", "processes", "dtype"),
    [
        (signal.SIGTERM, "launcher", 2, "float32"),
        (signal.SIGUSR1, "launcher", 1, "bfloat16"),
        (signal.SIGUSR1, "last rank", 2, "float32"),
    ],
)
def test_a_signal_saves_a_checkpoint_exits_with_75_and_loses_no_step(
    number: int,
    whom: str,
    processes: int,
    dtype: str,
    align_config: Path,
    undisturbed: Callable[..., Path],
    tmp_path: Path,
) -> None:
    if dtype == "bfloat16":
        require_bfloat16()
    run = tmp_path / "run"
    settings = [f"align.processes={processes}", "align.save_steps=0", f"model.dtype={dtype}"]
    process = start(align_config, *settings)
    log = run / "iter0" / "metrics.jsonl"
    wait_until(lambda: log.is_file() and log.read_text().count("\n") >= 3, "three steps")
    os.kill(process.pid if whom == "launcher" else ranks_of(process.pid)[-1].pid, number)
    assert process.wait(timeout=60) == EXIT_CODE == 75
    said = process.stderr.read() if process.stderr else ""
    assert "start again to continue" in said
    assert "Traceback" not in said
    (saved,) = (run / "iter0" / "model.checkpoints").glob("step-*")
    assert int(saved.name.split("-")[1]) == len(metrics(run)) >= 3, "steps were lost"

    finish_as(undisturbed(processes, dtype), run, start(align_config, *settings))


def test_a_training_saves_while_its_job_still_has_the_time(
    align_config: Path, undisturbed: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) + 5))
    process = start(align_config, "align.processes=1", "align.save_steps=0")
    assert process.wait(timeout=120) == EXIT_CODE
    assert [row["step"] for row in metrics(tmp_path / "run")] == [1]
    monkeypatch.delenv("SLURM_JOB_END_TIME")
    finish_as(undisturbed(1), tmp_path / "run", start(align_config, "align.processes=1", "align.save_steps=0"))


@pytest.mark.parametrize(("before", "after", "zero"), [(2, 1, "zero3_cpu"), (1, 2, "zero3"), (2, 1, "zero2")])
def test_a_training_continues_on_another_number_of_ranks(
    before: int,
    after: int,
    zero: str,
    align_config: Path,
    undisturbed: Callable[..., Path],
    align: Cli,
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    process = start(align_config, f"align.processes={before}", "align.save_total_limit=2", f"align.ds_config={zero}")
    checkpoints = run / "iter0" / "model.checkpoints"
    wait_until(lambda: len(list(checkpoints.glob("step-*"))) == 2, "two checkpoints")
    process.terminate()
    assert process.wait(timeout=60) == EXIT_CODE
    left = sorted(int(path.name.split("-")[1]) for path in checkpoints.glob("step-*"))
    assert len(left) == 2, "save_total_limit keeps two"
    done = len(metrics(run))
    result = align(*MANY, f"align.processes={after}", f"align.ds_config={zero}")
    assert result.returncode == 0, result.stderr
    expected = undisturbed(after)
    losses = [row["loss"] for row in metrics(run)]
    assert losses[done:] == pytest.approx([row["loss"] for row in metrics(expected)][done:], abs=1e-5)
    assert largest_difference(weights(run), weights(expected)) < 1e-5


def test_held_out_pairs_are_evaluated_and_not_trained_on(align: Cli, tmp_path: Path) -> None:
    settings = ["align.eval_pairs=4", "align.eval_steps=1", "align.learning_rate=1e-12"]
    result = align(*settings)
    assert result.returncode == 0, result.stderr
    rows = metrics(tmp_path / "run")
    assert len(rows) == STEPS - 1, "four of twelve pairs are held out"
    assert all(row["eval_loss"] - row["eval_nll_loss"] == pytest.approx(math.log(2), abs=1e-5) for row in rows)
    assert {"eval_lang/en/rewards/accuracies", "eval_kl", "perf/peak_memory_gb"} <= rows[0].keys()
    manifest = read_json(tmp_path / "run" / "iter0" / "model.manifest.json")
    assert (manifest["facts"]["pairs"], manifest["facts"]["held_out"]) == (8, 4)
    refused = align("align.eval_pairs=12", f"run_dir={tmp_path / 'other'}")
    assert refused.returncode == 2
    assert "holding out 12 of the 12 pairs in en leaves none to train on" in refused.stderr


def test_held_out_pairs_depend_only_on_the_seed() -> None:
    pairs = [TrainingPair(str(i), "en" if i % 3 else "es", Example((1,), ((2,), (3,))), str(i)) for i in range(30)]
    train, held_out = hold_out(pairs, 2, seed=1)
    assert [pair.lang for pair in held_out].count("en") == [pair.lang for pair in held_out].count("es") == 2
    assert sorted([*train, *held_out], key=lambda pair: int(pair.id)) == pairs
    assert hold_out(pairs, 2, seed=1) == (train, held_out)
    assert hold_out(pairs, 2, seed=2) != (train, held_out)
    assert hold_out(pairs, 0, seed=1) == (pairs, [])


def test_the_pairs_of_a_step_depend_only_on_seed_and_epoch() -> None:
    settings = TrainConfig(global_batch_size=4, num_train_epochs=2, micro_batch_tokens=50)
    lengths = [10 + i for i in range(10)]

    def steps(world_size: int) -> list[list[int]]:
        plan = plan_steps(lengths, None, settings, 42, world_size)
        return [sorted(i for micro in step for batch in micro for i in batch) for step in plan]

    assert steps(1) == steps(2) == steps(3)
    for epoch in (steps(1)[:3], steps(1)[3:]):
        assert sorted(i for step in epoch for i in step) == list(range(10))
    assert steps(1)[:3] != steps(1)[3:]


@pytest.fixture
def in_process(only_rank: OnlyRank, tiny_models: dict[str, Path], preferences: Path) -> tuple[Trainer, Any]:
    """A trainer of one rank in this process, and its frozen reference, whose weights differ from the policy's."""
    settings = TrainConfig(
        learning_rate=1e-3, warmup_ratio=0, ds_config="zero3_cpu", reference_ds_config="reference_cpu"
    )
    encoder = ChatEncoder(load_tokenizer(tiny_models["initial"]), "initial")
    pairs = [
        TrainingPair(
            one.id,
            "en",
            Example(encoder.prompt_of(one.prompt), (encoder.response(one.chosen), encoder.response(one.rejected))),
            one.id,
        )
        for one in load_preferences(str(preferences))
    ]
    aligned, initial = str(tiny_models["aligned"]), str(tiny_models["initial"])
    policy = engine.open_policy(aligned, settings, torch.float32, SHARED_PROMPT, 3)
    frozen = engine.open_reference(initial, settings, torch.float32, SHARED_PROMPT)
    logps = frozen_logps(frozen, SHARED_PROMPT, only_rank.device)
    return Trainer(settings, policy, logps, SHARED_PROMPT, only_rank.device, Ranks(0, 1, 0), pairs), frozen


def copy_of(opened: Any) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in engine.gathered(opened)}


def test_the_reference_stays_frozen_and_the_checks_find_differing_models(
    in_process: tuple[Trainer, Any],
) -> None:
    training, frozen = in_process
    policy_before, reference_before = copy_of(training.policy), copy_of(frozen)
    values = training.step([[list(range(len(training.pairs)))]])
    reference_after = copy_of(frozen)
    assert all(torch.equal(reference_before[name], reference_after[name]) for name in reference_before)
    assert largest_difference(policy_before, copy_of(training.policy)) > 0
    assert {"lang/en/rewards/accuracies", "perf/mfu", "kl", "grad_norm"} <= set(values)

    with pytest.raises(UserError, match=r"at step 0 is .*, not 0\.693147,"):
        gates.require_first_loss(values, [1.0] * len(training.pairs), training.train, True, torch.float32)
    example = training.pairs[0].example
    probe = {"prompt": list(example.prompt), "response": list(example.responses[0])}
    logp = training.logps([example])[0].item()
    gates.require_scorers_logps(training, [probe | {"logp_policy": logp}], bfloat16=False)
    with pytest.raises(UserError, match="trainer and scorer disagree"):
        gates.require_scorers_logps(training, [probe | {"logp_policy": 1.01 * logp}], bfloat16=False)


def test_a_pair_counts_by_its_weight(in_process: tuple[Trainer, Any]) -> None:
    training, _ = in_process
    pairs, nll = training.pairs[:3], training.train.nll_weight

    def preference_loss(held_out: list[TrainingPair]) -> float:
        training.held_out = held_out
        values = training.evaluate()
        return values["eval_loss"] - nll * values["eval_nll_loss"]

    alone = [preference_loss([pair]) for pair in pairs]
    weights = [0.0, 0.5, 2.5]
    weighted = preference_loss([replace(pair, weight=own) for pair, own in zip(pairs, weights, strict=True)])
    expected = sum(own * loss for own, loss in zip(weights, alone, strict=True)) / 3
    assert weighted == pytest.approx(expected, rel=1e-5)
    assert weighted != pytest.approx(preference_loss(pairs), rel=1e-3)


def test_the_reference_point_of_kto_is_that_of_a_plain_loop(in_process: tuple[Trainer, Any]) -> None:
    """Of the pairs of the step alone, however it is cut; a prompt with several pairs is not asked with its own."""
    training, frozen = in_process
    kto = training.train.model_copy(update={"loss_type": "kto", "max_length": 10_000})
    training.train = kto
    first, second, third = training.pairs[:3]
    pairs = [first, replace(first, id="again", example=Example(first.example.prompt, third.example.responses)), second]
    expected = []
    for own, other in ((pairs[0], pairs[2]), (pairs[1], pairs[2]), (pairs[2], pairs[1])):
        with torch.no_grad():
            example = Example(own.example.prompt, other.example.responses)
            policy, reference = (training.logps([example], model) for model in (None, frozen))
        expected += (policy - reference).tolist()
    mean = sum(expected) / len(expected)
    if mean < 0:  # so that the clamp hides nothing
        training.policy, frozen = frozen, training.policy
        training.reference_logps = frozen_logps(frozen, SHARED_PROMPT, training.device)
        mean = -mean
    given = [third, *pairs]
    for micro_steps in ([[[1, 2, 3]]], [[[3]], [[1]], [[2]]]):
        assert float(training._reference_point(given, micro_steps)) == pytest.approx(mean, rel=1e-4, abs=1e-6)
    assert float(training._reference_point(given, [[[1, 2]]])) == 0.0  # all of one prompt
    training.train = kto.model_copy(update={"max_length": 1})  # all are too long
    assert float(training._reference_point(given, [[[1, 2, 3]]])) == 0.0
    training.train = kto.model_copy(update={"loss_type": "sigmoid"})
    assert training._reference_point(given, [[[1, 2, 3]]]) == 0.0


def test_the_reference_point_of_kto_does_not_depend_on_ranks_and_micro_batches(align: Cli, tmp_path: Path) -> None:
    """With one pair a micro-batch, a rank has none at times."""
    found = []
    for processes, tokens in ((1, 400), (2, 1)):
        run = tmp_path / str(processes)
        cut = [f"align.processes={processes}", f"align.micro_batch_tokens={tokens}", f"run_dir={run}"]
        result = align("align.loss_type=kto", "align.learning_rate=0.05", "align.nll_weight=0", *cut)
        assert result.returncode == 0, result.stderr
        found.append(metrics(run))
    for name in ("reference_point", "loss"):
        one, two = ([row[name] for row in rows] for rows in found)
        assert one == pytest.approx(two, rel=1e-3, abs=1e-4)
    assert found[0][0]["reference_point"] == 0.0  # both models are the same


def test_a_gradient_that_is_not_finite_changes_no_weight_and_names_the_pairs(
    in_process: tuple[Trainer, Any],
) -> None:
    training, _ = in_process
    before = copy_of(training.policy)
    weight = training.policy.module.causal_lm.model.norm.weight
    broken = weight.register_hook(lambda gradient: gradient * torch.inf)
    with pytest.raises(
        FloatingPointError, match=r"the gradient is not finite at the step with the pairs en p01, en p02;"
    ):
        training.step([[[0]], [[1]]])
    broken.remove()
    after = copy_of(training.policy)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_loss_that_is_not_finite_changes_no_weight_and_names_its_pair(
    in_process: tuple[Trainer, Any],
) -> None:
    training, _ = in_process
    before = copy_of(training.policy)
    odd, reference_logps = training.pairs[1], training.reference_logps
    training.reference_logps = lambda pairs: reference_logps(pairs).masked_fill(
        torch.tensor([[pair is odd] for pair in pairs]), torch.nan
    )
    with pytest.raises(FloatingPointError, match=r"the loss is nan for the pairs en p02;"):
        training.step([[[0]], [[1, 2]]])
    after = copy_of(training.policy)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_model_is_written_in_shards_and_read_back(
    in_process: tuple[Trainer, Any],
    tiny_models: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    training, _ = in_process
    monkeypatch.setattr(export, "SHARD_BYTES", 20_000)
    target = tmp_path / "model"
    export.export(training.policy, str(tiny_models["aligned"]), target, "the card")
    index = read_json(target / "model.safetensors.index.json")
    files = sorted(path.name for path in target.glob("model-*.safetensors"))
    assert len(files) > 2
    assert sorted(set(index["weight_map"].values())) == files
    assert all((target / name).stat().st_size < 20_000 + 600 * 32 * 4 for name in files)
    assert (target / "README.md").read_text() == "the card"
    opened = AutoModelForCausalLM.from_pretrained(target)
    named = {name: parameter.detach() for name, parameter in opened.named_parameters()}
    assert largest_difference(named, copy_of(training.policy)) == 0
    gates.require_same_model(training, target, torch.float32, False)
    with pytest.raises(RuntimeError, match="the exported model gives"):
        gates.require_same_model(training, tiny_models["initial"], torch.float32, False)

    save = export.save_file
    monkeypatch.setattr(export, "save_file", lambda tensors, path, **_: save(dict(list(tensors.items())[1:]), path))
    with pytest.raises(OSError, match="tensors differ from what was written"):
        export.export(training.policy, str(tiny_models["aligned"]), tmp_path / "broken", "")
    assert not list(tmp_path.glob("*broken*")), "half an export was left behind"

    def swap_a_bit(tensors: dict[str, Tensor], path: Path, **_: object) -> None:
        name, tensor = next(iter(tensors.items()))
        tensor = tensor.clone()
        tensor.view(torch.uint8).view(-1)[0] ^= 1  # the lowest bit of one weight
        save(tensors | {name: tensor}, path)

    monkeypatch.setattr(export, "save_file", swap_a_bit)
    with pytest.raises(OSError, match="tensors differ from what was written"):
        export.export(training.policy, str(tiny_models["aligned"]), tmp_path / "swapped", "")
