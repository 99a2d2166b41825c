"""The self-test passes on this machine, and says what is wrong where something is."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Cli, assert_refused
from xlr.errors import UserError
from xlr.records import Score
from xlr.run.files import read_json
from xlr.selftest import material, selftest
from xlr.selftest.check import Check


def test_a_sound_machine_passes(cli: Cli, tmp_path: Path) -> None:
    """With two ranks and the real Ray, on a tiny model."""
    result = cli("selftest", tmp_path / "test", "--processes", 2)
    assert result.returncode == 0, result.stdout + result.stderr
    found = read_json(tmp_path / "test" / "selftest.json")
    checks = {check["check"]: check for check in found["checks"]}
    assert not [check for check in found["checks"] if check["remedy"]]
    assert "2 tasks met over gloo" in checks["collectives"]["found"]
    assert checks["loss at step 0"]["found"].startswith("0.69314")
    assert checks["scoring again"]["found"] == "the same bits, 32 responses"
    for name in ("model", "numerics", "training", "training's memory", "checkpoints", "sampling", "scoring"):
        assert f"ok      {name}: " in result.stdout
    assert_refused(cli("selftest", tmp_path / "test"), "test: exists already; give a new folder, or remove it")


def test_an_unknown_shape_is_refused(cli_here: Cli, tmp_path: Path) -> None:
    refused = cli_here("selftest", tmp_path / "test", "--shape", "70b")
    assert_refused(refused, "--shape 70b: not a shape; choose one of tiny, 1b, 8b")
    assert not (tmp_path / "test").exists()


def test_a_stage_that_refuses_is_a_failed_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: Any) -> Any:
        raise UserError("the DPO loss at step 0 is 0.7, not ln 2")

    monkeypatch.setattr(selftest, "_prepare", lambda *_: iter([Check("model", "made")]))
    monkeypatch.setattr(selftest, "_run", refuse)
    refuse.__name__ = "_run"
    found = list(selftest.examine(tmp_path / "test", "tiny", 1))
    assert [check.check for check in found] == ["model", "run"]
    assert found[-1].found == "the DPO loss at step 0 is 0.7, not ln 2"
    assert found[-1].remedy
    assert read_json(tmp_path / "test" / "selftest.json")["checks"][-1]["check"] == "run"


def a_score(logp: float) -> Score:
    return Score("q", "es", 0, "", "stop", "", logp, -10.0, logp + 10, 100, 0, "es", 0.0)


@pytest.mark.parametrize(
    ("difference", "bfloat16", "passes"),
    [(0.0, False, True), (0.1, False, False), (0.1, True, True), (9.0, True, False)],
)
def test_differences_beyond_rounding_fail(difference: float, bfloat16: bool, passes: bool) -> None:
    before, now = a_score(-50.0), a_score(-50.0 + difference)
    check = selftest._compared("again", [now], {now.key: before}.__getitem__, bfloat16)
    assert (not check.remedy) == passes
    assert ("the same bits" in check.found) == (difference == 0)


def test_responses_of_the_random_model_hold_tokens_of_its_tokenizer(tmp_path: Path) -> None:
    """Else they would be decoded to nothing, and scored with other lengths than they were sampled with."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    material.write_model(tmp_path, "tiny", seed=1)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer("What is the capital of France?", return_tensors="pt").input_ids
    probabilities = model(ids).logits.detach().float().softmax(-1)
    assert float(probabilities[..., : len(tokenizer)].sum(-1).min()) > 0.999
    assert float(probabilities[0, -1].max()) < 0.5  # responses differ
    assert model.dtype == torch.bfloat16


def test_shapes_are_those_of_the_real_models() -> None:
    for shape, published in (("1b", 1.236e9), ("8b", 8.03e9)):
        sizes = material.sizes(shape)
        tied = dataclasses.replace(sizes, tied=shape == "1b")  # the self-test unties it: see `_confine`
        assert tied.parameters == pytest.approx(published, rel=1e-3)
