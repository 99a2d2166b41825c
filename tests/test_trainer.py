"""The trainer under real DeepSpeed ZeRO-3: equal to plain torch, whatever the ranks and the micro-batches."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, get_scheduler

from tests import tiny
from tests.conftest import Cli
from xlr import config, trainer
from xlr.encoding import ChatEncoder, Example, load_tokenizer
from xlr.errors import UserError
from xlr.prompts import load_preferences
from xlr.shipped import shipped

STEPS, BATCH, BETA, RATE, CLIP = 3, 4, 0.1, 1e-4, 1.0


@pytest.fixture(scope="module")
def preferences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "preferences.jsonl"
    lines = (config.RECIPES / "quickstart" / "preferences.jsonl").read_text(encoding="utf-8").splitlines(True)
    path.write_text("".join(lines[: STEPS * BATCH]), encoding="utf-8")
    return path


@pytest.fixture
def align_config(tiny_tree: dict[str, Any], preferences: Path, write_config: Callable[[dict[str, Any]], Path]) -> Path:
    """The align stage is the trainer without the stages before it."""
    model = {"initial": tiny_tree["model"]["initial"]}
    align = tiny_tree["train"] | {"preferences": str(preferences), "learning_rate": RATE}
    return write_config(tiny_tree | {"model": model, "align": align})


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


def plain_torch_training(initial: Path, preferences: Path) -> tuple[dict[str, Tensor], list[float]]:
    """The same training with nothing of ours but the encoder: one process, one sequence at a time."""
    encoder = ChatEncoder(load_tokenizer(initial), "initial")
    data = [
        (encoder.prompt_of(prompt), encoder.response(chosen), encoder.response(rejected))
        for _, prompt, chosen, rejected in load_preferences(str(preferences))
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
                reference_margin = response_logp(reference, prompt, chosen) - response_logp(reference, prompt, rejected)
            chosen_logp = response_logp(policy, prompt, chosen)
            margin = chosen_logp - response_logp(policy, prompt, rejected) - reference_margin
            total = total + torch.log(1 + torch.exp(-BETA * margin)) - chosen_logp / len(chosen)
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
    processes: int, cli: Cli, align_config: Path, preferences: Path, tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    result = cli("align", align_config, f"align.processes={processes}")
    assert result.returncode == 0, result.stderr
    expected, losses = plain_torch_training(tiny_models["initial"], preferences)
    assert largest_difference(weights(tmp_path / "run"), expected) < 1e-6
    logged = metrics(tmp_path / "run")
    assert [row["loss"] for row in logged] == pytest.approx(losses, rel=1e-4)
    assert logged[0]["loss"] - logged[0]["nll_loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert logged[0]["rewards/margins"] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(
    "overrides",
    [
        ["align.micro_batch_tokens=1"],
        ["align.micro_batch_tokens=100000"],
        ["align.micro_batch_tokens=1", "align.processes=2"],
        ["model.attn_implementation=sdpa"],
        ["align.gradient_checkpointing=true"],
        ["align.ds_config=zero3", "align.reference_ds_config=reference"],
    ],
)
def test_how_the_work_is_cut_does_not_change_the_loss(
    overrides: list[str], cli: Cli, align_config: Path, preferences: Path, tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    result = cli("align", align_config, *overrides)
    assert result.returncode == 0, result.stderr
    expected, losses = plain_torch_training(tiny_models["initial"], preferences)
    assert [row["loss"] for row in metrics(tmp_path / "run")] == pytest.approx(losses, rel=1e-5)
    assert largest_difference(weights(tmp_path / "run"), expected) < 1e-5


@pytest.mark.parametrize("tied", [True, False])
def test_weights_that_are_gathered_and_released_at_every_use_train_the_same(
    tied: bool, cli: Cli, align_config: Path, preferences: Path, tmp_path: Path
) -> None:
    """As on many GPUs: nothing stays gathered, every weight is cut over both ranks, activations are recomputed."""
    initial = tiny.save(tmp_path / "model", seed=3, tied=tied)
    names = []
    for name in ("zero3", "reference"):
        tree = json.loads(shipped("ds_configs", f"{name}.json").read_text(encoding="utf-8"))
        tree["zero_optimization"] |= {"stage3_param_persistence_threshold": 0, "stage3_max_live_parameters": 0}
        (tmp_path / f"{name}.json").write_text(json.dumps(tree))
        names.append(tmp_path / f"{name}.json")
    settings = [f"model.initial={initial}", "align.processes=2", "align.gradient_checkpointing=true"]
    settings += [f"align.ds_config={names[0]}", f"align.reference_ds_config={names[1]}"]
    result = cli("align", align_config, *settings)
    assert result.returncode == 0, result.stderr
    expected, losses = plain_torch_training(initial, preferences)
    assert [row["loss"] for row in metrics(tmp_path / "run")] == pytest.approx(losses, rel=1e-5)
    assert largest_difference(weights(tmp_path / "run"), expected) < 1e-6


def test_another_launcher_may_start_the_ranks(align_config: Path, preferences: Path, cli: Cli, tmp_path: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, "-m", "xlr", "align", str(align_config)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    other = tmp_path / "other"
    assert cli("align", align_config, "align.processes=2", f"run_dir={other}").returncode == 0
    one, two = weights(tmp_path / "run"), weights(other)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_the_exported_folder_opens_in_transformers(
    cli: Cli, align_config: Path, tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    assert cli("align", align_config, "align.max_steps=1").returncode == 0
    folder = tmp_path / "run" / "iter0" / "model"
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.generation_config.eos_token_id is not None
    assert load_tokenizer(folder).chat_template == load_tokenizer(tiny_models["initial"]).chat_template


def test_a_killed_training_continues_to_the_same_weights(cli: Cli, align_config: Path, tmp_path: Path) -> None:
    many = ["align.num_train_epochs=12", "align.save_steps=2", "align.processes=2"]
    assert cli("align", align_config, *many).returncode == 0
    undisturbed = weights(tmp_path / "run")

    arguments = [str(align_config), *many, f"run_dir={tmp_path / 'again'}"]
    process = subprocess.Popen([sys.executable, "-m", "xlr", "align", *arguments], stdout=subprocess.DEVNULL)
    checkpoints = tmp_path / "again" / "iter0" / "model.checkpoints"
    deadline = time.monotonic() + 120
    while not list(checkpoints.glob("step-*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    left = sorted(path.name for path in checkpoints.glob("step-*"))
    assert left, "killed before the first checkpoint"

    result = cli("align", *arguments)
    assert result.returncode == 0, result.stderr
    resumed = weights(tmp_path / "again")
    assert all(torch.equal(resumed[name], undisturbed[name]) for name in undisturbed)
    steps = [row["step"] for row in metrics(tmp_path / "again")]
    assert steps == list(range(1, 12 * STEPS + 1))
    assert not checkpoints.exists()


def test_the_plan_s_steps_depend_on_seed_and_epoch_alone() -> None:
    settings = config.TrainConfig(global_batch_size=4, num_train_epochs=2, micro_batch_tokens=50)
    lengths = [10 + i for i in range(10)]

    def steps(world_size: int) -> list[list[int]]:
        plan = trainer.plan_steps(lengths, None, settings, 42, world_size)
        return [sorted(i for micro in step for batch in micro for i in batch) for step in plan]

    assert steps(1) == steps(2) == steps(3)
    for epoch in (steps(1)[:3], steps(1)[3:]):
        assert sorted(i for step in epoch for i in step) == list(range(10))
    assert steps(1)[:3] != steps(1)[3:]


def test_a_deepspeed_file_that_contradicts_the_configuration_is_refused(
    cli: Cli, align_config: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.json"
    broken.write_text('{"zero_optimization": {"stage": 3}, "gradient_clipping": 0.5, "bf16": {"enabled": "auto"}}')
    result = cli("align", align_config, f"align.ds_config={broken}")
    assert result.returncode == 2
    assert "gradient_clipping is 0.5, the configuration says 1.0" in result.stderr
    assert "Traceback" not in result.stderr


def test_the_reference_stays_frozen_and_the_gates_catch_what_they_should(
    tiny_models: dict[str, Path], preferences: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process, one rank: bit-equal reference weights, and each startup gate made to fail."""
    import socket

    from xlr import engine
    from xlr.launch import Ranks
    from xlr.packing import SHARED_PROMPT
    from xlr.trainingpairs import TrainingPair

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MASTER_PORT", str(free.getsockname()[1]))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    ranks = Ranks(0, 1, 0)
    settings = config.TrainConfig(
        learning_rate=1e-3, warmup_ratio=0, ds_config="zero3_cpu", reference_ds_config="reference_cpu"
    )
    encoder = ChatEncoder(load_tokenizer(tiny_models["initial"]), "initial")
    pairs = [
        TrainingPair(key, "en", Example(encoder.prompt_of(prompt), (encoder.response(good), encoder.response(bad))))
        for key, prompt, good, bad in load_preferences(str(preferences))
    ]
    device = engine.init_distributed(ranks)
    try:
        aligned, initial = str(tiny_models["aligned"]), str(tiny_models["initial"])
        policy = engine.open_policy(aligned, settings, torch.float32, SHARED_PROMPT, 3)
        reference = engine.open_reference(initial, settings, torch.float32, SHARED_PROMPT)

        def copy(of: Any) -> dict[str, Tensor]:
            return {name: parameter.detach().clone() for name, parameter in engine.gathered(of)}

        policy_before, reference_before = copy(policy), copy(reference)
        training = trainer._Trainer(settings, policy, reference, device, SHARED_PROMPT, ranks, pairs)
        values = training.step([[list(range(len(pairs)))]])
        reference_after = copy(reference)
        assert all(torch.equal(reference_before[name], reference_after[name]) for name in reference_before)
        assert largest_difference(policy_before, copy(policy)) > 0
        assert {"lang/en/rewards/accuracies", "perf/mfu", "kl", "grad_norm"} <= set(values)

        with pytest.raises(UserError, match="not ln 2"):  # the policy is not the reference here
            trainer._require_ln2(values, settings, same_models=True)
        example = pairs[0].example
        probe = {"prompt": list(example.prompt), "response": list(example.responses[0])}
        logp = training._logps(policy, [example])[0].item()
        training.check_probes([probe | {"logp_policy": logp}])
        with pytest.raises(UserError, match="trainer and scorer disagree"):
            training.check_probes([probe | {"logp_policy": 1.01 * logp}])

        with torch.no_grad():
            for parameter in policy.module.parameters():
                parameter.fill_(torch.nan)
        with pytest.raises(FloatingPointError, match=r"the loss is nan at the step with the pairs p01"):
            training.step([[[0, 1]]])
    finally:
        engine.close_distributed()
