"""SmolLM2-135M on real prompts: log-probabilities against float64, and one whole iteration."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.conftest import Cli
from tests.rows import read_rows
from xlr.chat.encoding import ChatEncoder, load_tokenizer
from xlr.data.prompts import load_prompts
from xlr.maths.noise import AtZero, allowed_difference, allowed_loss_difference
from xlr.model.logprobmodel import LogprobModel
from xlr.model.worker import Worker
from xlr.packing.batch import pack, pad
from xlr.records import Example, Pair, Score
from xlr.run.files import read_json
from xlr.settings.dataconfig import PromptsConfig
from xlr.settings.modelconfig import SHARED_PROMPT

MAX_PROMPT_CHARACTERS = 300


def require_bfloat16() -> None:
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this processor multiplies bfloat16 slowly")


def test_logps_on_real_prompts_equal_a_float64_loop(smollm2: Path, shared_data: Path) -> None:
    prompts = load_prompts(PromptsConfig(path=str(shared_data / "ultrafeedback_parallel"), limit=40), ["es", "ru"])
    encoder = ChatEncoder(load_tokenizer(smollm2), "smollm2")
    short = [
        (english.instruction, prompt.instruction)
        for lang in ("es", "ru")
        for english, prompt in zip(prompts["en"], prompts[lang], strict=True)
        if len(english.instruction) < MAX_PROMPT_CHARACTERS
    ][:3]
    # Responses can be any real text: here the translated instruction, whole and truncated.
    examples = [
        Example(encoder.prompt(english), (encoder.response(text), encoder.response(text[: len(text) // 2])))
        for english, text in short
    ]
    exact = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float64)
    expected = []
    with torch.no_grad():
        for prompt, response in [(e.prompt, r) for e in examples for r in e.responses]:
            logits_TV = exact(input_ids=torch.tensor([[*prompt, *response]])).logits[0]
            total = 0.0
            for i, token in enumerate(response):
                row = logits_TV[len(prompt) - 1 + i]
                total += (row[token] - row.max()).item() - math.log((row - row.max()).exp().sum().item())
            expected.append(total)
    del exact
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    with torch.no_grad():
        for attention, layout in ((SHARED_PROMPT, pack), ("sdpa", pad)):
            model.set_attn_implementation(attention)
            together = LogprobModel(model)(layout(examples)).tolist()
            assert together == pytest.approx(expected, rel=1e-4)
            alone = LogprobModel(model)(layout(examples[1:2])).tolist()
            assert alone == pytest.approx(together[2:4], rel=1e-5)


def short_prompts(source: Path, target: Path, count: int) -> None:
    """The first instructions that are short in English, in the test's languages."""
    target.mkdir()
    rows = {
        lang: [json.loads(line) for line in (source / f"{lang}.jsonl").read_text(encoding="utf-8").splitlines()]
        for lang in ("en", "es", "ru")
    }
    short = [i for i, row in enumerate(rows["en"]) if len(row["instruction"]) < MAX_PROMPT_CHARACTERS][:count]
    for lang, of_lang in rows.items():
        lines = [json.dumps(of_lang[i], ensure_ascii=False) + "\n" for i in short]
        (target / f"{lang}.jsonl").write_text("".join(lines), encoding="utf-8")


def test_bfloat16_logps_differ_from_float32_by_the_noise_that_the_gates_allow(smollm2: Path, shared_data: Path) -> None:
    """With weights in bfloat16, as scored on GPUs; the Worker checks itself against the plain model first."""
    require_bfloat16()
    prompts = load_prompts(PromptsConfig(path=str(shared_data / "ultrafeedback_parallel"), limit=30), ["es"])
    encoder = ChatEncoder(load_tokenizer(smollm2), "smollm2")
    texts = [prompt.instruction for prompt in prompts["es"] if len(prompt.instruction) < MAX_PROMPT_CHARACTERS][:6]
    examples = [Example(encoder.prompt("Repeat the text."), (encoder.response(text),)) for text in texts]
    worker = Worker(None, "auto", SHARED_PROMPT)
    exact, rounded = (worker.logps(str(smollm2), examples, dtype) for dtype in ("float32", "bfloat16"))
    assert exact != rounded
    for one, other, example in zip(exact, rounded, examples, strict=True):
        assert abs(one - other) < allowed_difference(one, len(example.responses[0]), bfloat16=True)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_one_iteration_on_real_prompts(
    dtype: str,
    cli: Cli,
    smollm2: Path,
    shared_data: Path,
    write_config: Callable[[dict[str, Any]], Path],
    tmp_path: Path,
) -> None:
    """generate -> score -> pair -> reference -> train on 6 real prompts in es and ru; pi_I is pi^0 plus noise."""
    if dtype == "bfloat16":
        require_bfloat16()
    start = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in start.model.layers[-1].parameters():
            parameter.add_(1e-3 * torch.randn(parameter.shape, generator=generator))
    start.save_pretrained(tmp_path / "initial")
    load_tokenizer(smollm2).save_pretrained(tmp_path / "initial")
    del start
    short_prompts(shared_data / "ultrafeedback_parallel", tmp_path / "prompts", 6)
    source = write_config(
        {
            "run_dir": str(tmp_path / "run"),
            "iterations": 1,
            "languages": ["es", "ru"],
            "model": {"initial": str(tmp_path / "initial"), "aligned": str(smollm2), "dtype": dtype},
            "prompts": {"path": str(tmp_path / "prompts")},
            "generate": {"num_samples": 2, "max_new_tokens": 24, "batch_size": 24},
            "score": {"batch_tokens": 1024},
            "train": {
                "reference_mode": "cached",
                "global_batch_size": 8,
                "micro_batch_tokens": 512,
                "max_steps": 1,
                "max_length": 512,
                "ds_config": "zero3_cpu",
                "reference_ds_config": "reference_cpu",
            },
        }
    )
    result = cli("run", source)
    assert result.returncode == 0, result.stderr
    folder = tmp_path / "run" / "iter1"
    scores = read_rows(folder / "scores", Score)
    assert {(row.lang, row.sample) for row in scores} == {(lang, sample) for lang in ("es", "ru") for sample in (0, 1)}
    assert all(math.isfinite(row.reward) for row in scores)
    assert 0 < len(read_rows(folder / "pairs", Pair)) <= 12
    (step,) = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    pairs = len(read_rows(folder / "pairs", Pair))
    zero = AtZero(math.log(2), slope=0.05, curvature=0.0025)
    allowed = allowed_loss_difference([(zero, step["num_tokens"])], min(pairs, 8), dtype == "bfloat16")
    assert step["loss"] - step["nll_loss"] == pytest.approx(math.log(2), abs=min(allowed, 0.2))
    assert read_json(folder / "model.manifest.json")["facts"]["steps"] == 1
    trained = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    assert trained.config.tie_word_embeddings
