"""Mixtures of experts train with transformers' load-balancing loss: values and gradients of a loop in float64."""

import json
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from tests import tiny
from tests.conftest import Cli, assert_refused
from tests.model.test_families import EXAMPLES, FAMILIES, TINY
from tests.model.test_families import tiny as tiny_family
from tests.training.conftest import OnlyRank, gathering
from tests.training.test_engine import gradient
from xlr import configfile
from xlr.errors import UserError
from xlr.model.experts import aux_loss_coef
from xlr.model.logprobmodel import batch_balance
from xlr.packing.layout import batch_shape
from xlr.records import Example
from xlr.run.context import Context
from xlr.settings.trainconfig import TrainConfig
from xlr.shipped import RECIPES
from xlr.training import model
from xlr.training.inputs import Training
from xlr.zero import engine

BALANCED = ("mixtral", "qwen2_moe", "qwen3_moe", "qwen3_next", "granitemoe", "olmoe", "gpt_oss", "minimax")
ROWS = {row[1]: row for row in FAMILIES}
KEY, ALIGN_KEY = "train.router_aux_loss_coef", "align.router_aux_loss_coef"


def plain_model(folder: str | Path) -> Any:
    """The model in float64, with transformers' own loop over experts."""
    plain = {"dtype": torch.float64, "attn_implementation": "eager", "experts_implementation": "eager"}
    return AutoModelForCausalLM.from_pretrained(folder, **plain)


def loads_and_probabilities(model: Any, examples: Sequence[Example]) -> tuple[Tensor, Tensor, int]:
    """Of each layer and expert, the tokens that choose it and the sum of its probabilities; and the number of tokens.

    One plain forward pass per response. A prompt's tokens count once.
    """
    layers = model(input_ids=torch.tensor([[1, 2]]), output_router_logits=True).router_logits
    loads_LE = torch.zeros(len(layers), layers[0].shape[-1], dtype=torch.float64)
    probabilities_LE, tokens = torch.zeros_like(loads_LE), 0
    for example in examples:
        for number, response in enumerate(example.responses):
            ids = torch.tensor([[*example.prompt, *response[:-1]]])
            begin = len(example.prompt) if number else 0
            tokens += ids.shape[1] - begin
            routed = model(input_ids=ids, output_router_logits=True).router_logits
            for layer, logits_TE in enumerate(routed):
                for logits_E in logits_TE[begin:]:
                    probabilities_LE[layer] = probabilities_LE[layer] + logits_E.softmax(-1)
                    for expert in logits_E.argsort(descending=True)[: model.config.num_experts_per_tok]:
                        loads_LE[layer, expert] += 1
    return loads_LE, probabilities_LE, tokens


def naive_aux_loss(model: Any, examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
    """The load-balancing loss of the examples, and the loads."""
    loads_LE, probabilities_LE, tokens = loads_and_probabilities(model, examples)
    layers, experts = loads_LE.shape
    shares_E, means_E = (of_LE.sum(0) / (layers * tokens) for of_LE in (loads_LE, probabilities_LE))
    return experts * sum(share * mean for share, mean in zip(shares_E, means_E, strict=True)), loads_LE


@pytest.mark.parametrize(
    ("model_type", "recompute"), [*((name, True) for name in BALANCED), ("mixtral", False), ("mixtral", "selective")]
)
def test_the_loss_the_loads_and_the_gradient_are_those_of_a_plain_loop(
    model_type: str, recompute: Any, only_rank: OnlyRank, tmp_path: Path
) -> None:
    _, _, attention, own = ROWS[model_type]
    tiny_family(model_type, own, attention).save_pretrained(tmp_path / "model")
    train = TrainConfig(ds_config=gathering("zero3", tmp_path), gradient_checkpointing=recompute)
    policy = engine.open_policy(str(tmp_path / "model"), train, torch.float32, attention, 3)
    logps_S, aux_loss, loads_LE = batch_balance(policy, EXAMPLES, attention, only_rank.device)
    policy.backward(0.01 * logps_S.mean() + aux_loss)
    plain = plain_model(tmp_path / "model")
    expected, expected_LE = naive_aux_loss(plain, EXAMPLES)
    logps = [response_logp(plain, one.prompt, response) for one in EXAMPLES for response in one.responses]
    (0.01 * torch.stack(logps).mean() + expected).backward()
    assert float(aux_loss) == pytest.approx(float(expected), rel=1e-5)
    assert torch.equal(loads_LE.double(), expected_LE)
    gradients = {name: parameter.grad for name, parameter in plain.named_parameters()}
    largest = max(float(one.norm()) for one in gradients.values() if one is not None)
    assert largest > 0
    for name, parameter in policy.module.causal_lm.named_parameters():
        found = gradient(policy, parameter).double()
        other = gradients[name]
        assert (found - (0 if other is None else other)).norm() <= 1e-4 * largest, name


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Mixtral with a tokenizer; its config.json has a coefficient, which nothing asks for."""
    folder = tiny.save(tmp_path_factory.mktemp("mixtral"), seed=1)
    words = json.loads((folder / "config.json").read_text())["vocab_size"]
    own = TINY | ROWS["mixtral"][3] | {"vocab_size": words, "max_position_embeddings": 1024, "sliding_window": None}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("mixtral", **own, router_aux_loss_coef=0.5))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, 0, 0.1)
    (folder / "generation_config.json").unlink()
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def config(mixtral: Path, tiny_tree: dict[str, Any], write_config: Any, tmp_path: Path) -> Path:
    lines = (RECIPES / "quickstart" / "preferences.jsonl").read_text(encoding="utf-8").splitlines(True)
    (tmp_path / "preferences.jsonl").write_text("".join(lines[:4]), encoding="utf-8")
    align = tiny_tree["train"] | {
        "preferences": str(tmp_path / "preferences.jsonl"),
        "learning_rate": 1e-4,
        "warmup_ratio": 0,
        "global_batch_size": 4,
        "micro_batch_tokens": 1,
    }
    tree: Path = write_config(tiny_tree | {"model": {"initial": str(mixtral)}, "align": align})
    return tree


@pytest.fixture
def align(cli_here: Cli, cli_rank: Cli, config: Path, tmp_path: Path) -> Callable[..., dict[str, float]]:
    """Run `xlr align`, in this process or in two ranks, and return the metrics of its only step."""

    def run(*overrides: str) -> dict[str, float]:
        folder = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        cli = cli_here if "align.processes=2" in overrides else cli_rank
        result: subprocess.CompletedProcess[str] = cli("align", config, f"run_dir={folder}", *overrides)
        assert result.returncode == 0, result.stderr
        (row,) = (folder / "iter0" / "metrics.jsonl").read_text().splitlines()
        values: dict[str, float] = json.loads(row)
        return values

    return run


def expected_metrics(config: Path, coefficient: float, world_size: int) -> tuple[float, float, float]:
    """Load-balancing loss, largest load and norm of the whole gradient, in float64, one sequence at a time."""
    training = Training(Context(configfile.load(config, [])), 0)
    (micro_steps,) = training.plan_steps(training.config, world_size)
    model = plain_model(training.start)
    examples = [pair.example for pair in training.pairs]
    tokens = sum(batch_shape(examples, "xlr_shared_prompt")[0])
    aux_loss, loads_LE = torch.zeros(()), torch.zeros(())
    for batch in (batch for micro_step in micro_steps for batch in micro_step if batch):
        own = [examples[i] for i in batch]
        own_loss, own_LE = naive_aux_loss(model, own)
        aux_loss = aux_loss + own_loss * sum(example.num_tokens for example in own) / tokens
        loads_LE = loads_LE + own_LE
    total = coefficient * aux_loss
    for example in examples:
        chosen, rejected = (response_logp(model, example.prompt, response) for response in example.responses)
        # The policy equals the reference, so the DPO loss has the gradient -beta / 2 of the margin.
        total = total - (0.1 / 2 * (chosen - rejected) + chosen / len(example.responses[0])) / len(examples)
    total.backward()
    norm = sum(float(one.grad.norm()) ** 2 for one in model.parameters() if one.grad is not None) ** 0.5
    return float(aux_loss), float((loads_LE.amax(1) / loads_LE.mean(1)).max()), norm


def response_logp(model: Any, prompt: tuple[int, ...], response: tuple[int, ...]) -> Tensor:
    logps_TV = model(input_ids=torch.tensor([[*prompt, *response]])).logits[0].log_softmax(-1)
    return logps_TV[len(prompt) - 1 : -1].gather(-1, torch.tensor(response)[:, None]).sum()


@pytest.mark.parametrize(("processes", "attention"), [(1, "xlr_shared_prompt"), (1, "sdpa"), (2, "xlr_shared_prompt")])
def test_a_step_adds_the_loss_of_each_micro_batch_by_its_tokens(
    processes: int, attention: str, align: Callable[..., dict[str, float]], config: Path
) -> None:
    """Rank and layout change the cut into micro-batches at most; here each pair is one, on one rank or on two."""
    values = align(f"align.processes={processes}", f"model.attn_implementation={attention}", f"{ALIGN_KEY}=0.7")
    aux_loss, max_load, norm = expected_metrics(config, 0.7, processes)
    assert values["router/aux_loss"] == pytest.approx(aux_loss, rel=1e-5)
    assert values["router/max_load"] == pytest.approx(max_load, rel=1e-6)
    assert values["grad_norm"] == pytest.approx(norm, rel=1e-4)


def test_the_loss_is_off_unless_config_json_or_the_setting_asks_for_it(
    align: Callable[..., dict[str, float]], config: Path, mixtral: Path, tmp_path: Path
) -> None:
    off = align()
    assert not [name for name in off if name.startswith("router/")]
    file = mixtral / "config.json"
    before = file.read_text()
    try:
        file.write_text(json.dumps(json.loads(before) | {"output_router_logits": True}))
        asked, refused = align(), align(f"{ALIGN_KEY}=0")
    finally:
        file.write_text(before)
    assert asked["grad_norm"] == pytest.approx(expected_metrics(config, 0.5, 1)[2], rel=1e-4)
    assert refused["grad_norm"] == off["grad_norm"]


def test_held_out_pairs_have_the_metrics_too(align: Callable[..., dict[str, float]]) -> None:
    values = align(f"{ALIGN_KEY}=0.1", "align.eval_pairs=1")
    assert values["eval_router/aux_loss"] >= 0.9 * ROWS["mixtral"][3]["num_experts_per_tok"]
    assert 1 <= values["eval_router/max_load"] <= 2


def test_a_dense_model_is_refused_at_once(cli_here: Cli, config: Path, tiny_models: dict[str, Path]) -> None:
    dense = f"model.initial={tiny_models['initial']}"
    result = cli_here("align", config, dense, f"{ALIGN_KEY}=0.01")
    assert_refused(result, f"{ALIGN_KEY}=0.01: models of type llama have no load-balancing loss")
    with pytest.raises(UserError, match=f"{KEY}=0.01: models of type llama"):
        model.check(Context(configfile.load(config, [dense, f"{KEY}=0.01"])))


def config_of(model_type: str, **own: Any) -> PretrainedConfig:
    made: PretrainedConfig = AutoConfig.for_model(model_type, **TINY | ROWS.get(model_type, ("", "", "", {}))[3] | own)
    return made


@pytest.mark.parametrize(
    ("asked", "setting", "expected"),
    [
        (config_of("llama"), "auto", 0),
        (config_of("llama"), 0.0, 0),
        (config_of("mixtral"), "auto", 0),
        (config_of("mixtral", output_router_logits=True, router_aux_loss_coef=0.3), "auto", 0.3),
        (config_of("mixtral", output_router_logits=True, router_aux_loss_coef=0.3), 0.0, 0),
        (config_of("mixtral"), 0.2, 0.2),
    ],
)
def test_the_coefficient(asked: Any, setting: Any, expected: float) -> None:
    assert aux_loss_coef(asked, setting, KEY) == expected


@pytest.mark.parametrize(
    "asked",
    [config_of("deepseek_v3"), config_of("qwen3"), config_of("jamba", num_experts=1, num_local_experts=1)],
    ids=["no-loss-in-transformers", "dense", "one-expert"],
)
def test_a_model_without_such_a_loss_is_refused_with_the_remedy(asked: Any) -> None:
    with pytest.raises(UserError, match=f"have no load-balancing loss, or no experts, .*; set {KEY} to 0"):
        aux_loss_coef(asked, 0.01, KEY)
