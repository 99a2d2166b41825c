"""Tests with a real vLLM: exact tokens in and out, a seed per response, resumed work, vLLM as judge."""

import importlib.util
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests import tiny
from tests.conftest import Cli, missing
from tests.rows import read_rows
from tests.waiting import descendants, wait_until
from xlr import configfile
from xlr.chat.encoding import ChatEncoder, load_tokenizer
from xlr.errors import UserError
from xlr.evaluation import judgements
from xlr.judging import endpoint, servedjudge
from xlr.judging import question as judgeprompt
from xlr.model.vllmsampler import VllmSampler
from xlr.model.worker import Worker
from xlr.records import Example, Response, SampleRequest, SampleSettings, Score, Verdict
from xlr.run.context import Context
from xlr.run.files import read_json
from xlr.settings import config
from xlr.settings.modelconfig import SHARED_PROMPT
from xlr.shipped import RECIPES

os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"

TEXTS = ["Hola", "Why do leaves fall in autumn, and where do they go?", "¿Qué?", "Nenne drei Vögel."]
HEAD_DIM = 32  # the smallest that vLLM's attention supports on CPUs


@pytest.fixture(scope="module", autouse=True)
def vllm() -> Any:
    if importlib.util.find_spec("vllm") is None:
        missing("vLLM is not installed here; run `make test-vllm`")
    import vllm

    return vllm


@pytest.fixture(scope="module")
def sampler(vllm: Any) -> VllmSampler:
    return VllmSampler(1, "float32", 1, 0.9, max_num_seqs=7)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny model whose chat template and tokenizer both add a BOS."""
    return str(tiny.save(tmp_path_factory.mktemp("models") / "llama3", seed=1, family="llama3", head_dim=HEAD_DIM))


@pytest.fixture(scope="module")
def encoder(model: str) -> ChatEncoder:
    return ChatEncoder(load_tokenizer(model), "llama3")


@pytest.fixture(scope="module")
def rows(encoder: ChatEncoder) -> list[SampleRequest]:
    return [SampleRequest(encoder.prompt(text), 2**62 + seed) for seed in range(5) for text in TEXTS]


def settings(
    temperature: float = 1.0, top_p: float = 1.0, top_k: int = 0, stop: tuple[int, ...] = ()
) -> SampleSettings:
    return SampleSettings(temperature, top_p, top_k, 16, stop)


def test_the_engine_is_given_the_prompt_s_own_ids(
    sampler: VllmSampler, model: str, encoder: ChatEncoder, rows: list[SampleRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler.sample(model, rows[:1], settings())
    outputs: list[Any] = []
    generate = sampler._engine.generate

    def keep(*arguments: Any, **options: Any) -> Any:
        outputs.extend(generate(*arguments, **options))
        return outputs

    monkeypatch.setattr(sampler._engine, "generate", keep)
    answers = sampler.sample(model, rows, settings())
    assert [tuple(output.prompt_token_ids) for output in outputs] == [row.prompt for row in rows]
    assert all(row.prompt.count(encoder.tokenizer.bos_token_id) == 1 for row in rows)
    assert [output.outputs[0].token_ids for output in outputs] == [tokens for tokens, _ in answers]


def test_the_engine_computes_as_many_responses_at_once_as_asked(
    sampler: VllmSampler, model: str, rows: list[SampleRequest]
) -> None:
    """More requests than slots: they wait, and all are answered."""
    assert len(sampler.sample(model, rows, settings())) == len(rows) > 7
    assert sampler._engine.llm_engine.vllm_config.scheduler_config.max_num_seqs == 7


def test_greedy_responses_equal_those_of_transformers(
    sampler: VllmSampler, model: str, encoder: ChatEncoder, rows: list[SampleRequest]
) -> None:
    worker, stop_ids = Worker(None, "float32", SHARED_PROMPT), tuple(encoder.stop_ids([]))
    greedy = settings(temperature=0.0, stop=stop_ids)
    free = worker.sample(model, rows[:4], greedy)
    assert sampler.sample(model, rows[:4], greedy) == free
    assert sampler.sample(model, rows[:4], settings(top_k=1, stop=stop_ids)) == free
    assert sampler.sample(model, rows[:4], settings(top_p=1e-6, stop=stop_ids)) == free
    midway = settings(temperature=0.0, stop=(*stop_ids, free[0][0][3]))
    stopped = worker.sample(model, rows[:4], midway)
    assert {reason for _, reason in stopped} == {"stop", "length"}
    assert sampler.sample(model, rows[:4], midway) == stopped


def test_only_stop_ids_end_a_response_and_they_are_not_part_of_it(
    sampler: VllmSampler, model: str, encoder: ChatEncoder, rows: list[SampleRequest]
) -> None:
    eos = encoder.tokenizer.eos_token_id
    many = [SampleRequest(rows[0].prompt, seed) for seed in range(300)]
    free = sampler.sample(model, many, settings())
    assert all((len(tokens), reason) == (16, "length") for tokens, reason in free)
    assert any(eos in tokens for tokens, _ in free)
    stopped = sampler.sample(model, many, settings(stop=(eos, 17)))
    for (tokens, _), (cut, reason) in zip(free, stopped, strict=True):
        ends = [i for i, token in enumerate(tokens) if token in (eos, 17)]
        assert (cut, reason) == ((tokens[: ends[0]], "stop") if ends else (tokens, "length"))


def test_a_response_is_decided_by_its_seed(sampler: VllmSampler, model: str, rows: list[SampleRequest]) -> None:
    """The response stays the same after other work and, for a small model on a CPU, in another batch."""
    together = sampler.sample(model, rows, settings())
    assert sampler.sample(model, rows, settings()) == together
    assert sampler.sample(model, rows[::-1], settings())[::-1] == together
    assert [sampler.sample(model, [row], settings())[0] for row in rows] == together
    assert len({tuple(tokens) for tokens, _ in together}) > 0.8 * len(rows)


def test_tokens_are_drawn_with_the_model_s_probabilities(
    sampler: VllmSampler, model: str, rows: list[SampleRequest]
) -> None:
    count, temperature = 4000, 0.2
    how = SampleSettings(temperature, 1.0, 0, 1, ())
    answers = sampler.sample(model, [SampleRequest(rows[1].prompt, seed) for seed in range(count)], how)
    drawn_V = torch.bincount(torch.tensor([tokens[0] for tokens, _ in answers]), minlength=600)
    with torch.no_grad():
        logits_V = AutoModelForCausalLM.from_pretrained(model)(torch.tensor([rows[1].prompt])).logits[0, -1]
    probabilities_V = (logits_V / temperature).softmax(-1)
    likely = probabilities_V > 5 / count
    deviation = (drawn_V - count * probabilities_V) / (count * probabilities_V * (1 - probabilities_V)).sqrt()
    assert likely.sum() > 20
    assert deviation[likely].abs().max() < 5
    assert deviation[likely].square().mean() == pytest.approx(1, abs=0.5)


def test_an_engine_is_replaced_for_another_model(
    sampler: VllmSampler, model: str, rows: list[SampleRequest], tmp_path: Path
) -> None:
    other = str(tiny.save(tmp_path / "other", seed=2, family="llama3", head_dim=HEAD_DIM))
    before = sampler.sample(model, rows, settings())
    assert sampler.sample(other, rows, settings()) != before
    assert sampler.sample(model, rows, settings()) == before


def test_a_prompt_without_room_for_its_response_is_refused(
    sampler: VllmSampler, model: str, rows: list[SampleRequest]
) -> None:
    long = [*rows, SampleRequest(rows[0].prompt * 200, 0)]
    with pytest.raises(UserError, match=r"a prompt of \d+ tokens and max_new_tokens=16 exceed the 1024 tokens"):
        sampler.sample(model, long, settings())


def damage(folder: Path, how: str) -> None:
    file = folder / "model.safetensors"
    weights = load_file(file)
    if how == "truncated":
        file.write_bytes(file.read_bytes()[:1000])
    elif how == "incomplete":
        del weights["model.layers.1.mlp.down_proj.weight"]
        save_file(weights, file, metadata={"format": "pt"})
    else:
        weights["model.layers.1.mlp.down_proj.weight"][3, 3] = torch.nan
        save_file(weights, file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("truncated", "missing, damaged or cut off"),
        ("incomplete", "weights are missing"),
        ("nan", r"model\.layers\.1\.mlp\.down_proj\.weight holds NaN or infinity"),
    ],
)
def test_damaged_weights_that_vllm_would_accept_are_refused(
    how: str, message: str, sampler: VllmSampler, rows: list[SampleRequest], tmp_path: Path
) -> None:
    folder = tiny.save(tmp_path / "damaged", seed=1, family="llama3", head_dim=HEAD_DIM)
    damage(folder, how)
    with pytest.raises(UserError, match=f"damaged.*: .*{message}"):
        sampler.sample(str(folder), rows, settings())


def test_a_model_that_vllm_cannot_open_is_named(vllm: Any, model: str, rows: list[SampleRequest]) -> None:
    with pytest.raises(UserError, match=r"llama3: vLLM cannot open the model \(.*heads.*tensor_parallel_size"):
        VllmSampler(1, "float32", 3, 0.9, max_num_seqs=7).sample(model, rows, settings())


def test_vllm_and_the_scorer_agree_on_log_probabilities_of_an_exported_model(
    sampler: VllmSampler, vllm: Any, cli: Cli, tiny_tree: dict[str, Any], tmp_path: Path, write_config: Any
) -> None:
    """vLLM opens the folder that the trainer wrote, and computes the same log-probabilities."""
    initial = tiny.save(tmp_path / "initial", seed=1, head_dim=HEAD_DIM)
    tiny_tree["model"] = {"initial": str(initial)}
    tiny_tree["align"] = tiny_tree["train"] | {"preferences": str(RECIPES / "quickstart" / "preferences.jsonl")}
    result = cli("align", write_config(tiny_tree), "align.max_steps=4")
    assert result.returncode == 0, result.stderr
    exported = str(tmp_path / "run" / "iter0" / "model")
    encoder = ChatEncoder(load_tokenizer(exported), exported)
    examples = [Example(encoder.prompt(text), (encoder.response(text), encoder.response(text[::-1]))) for text in TEXTS]
    sampler.sample(exported, [SampleRequest(examples[0].prompt, 0)], settings())
    whole = [(example.prompt, response) for example in examples for response in example.responses]
    outputs = sampler._engine.generate(
        [{"prompt_token_ids": [*prompt, *response]} for prompt, response in whole],
        vllm.SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False),
        use_tqdm=False,
    )
    theirs = [
        sum(
            position[token].logprob
            for token, position in zip(response, output.prompt_logprobs[len(prompt) :], strict=True)
        )
        for (prompt, response), output in zip(whole, outputs, strict=True)
    ]
    worker = Worker(None, "float32", SHARED_PROMPT)
    assert theirs == pytest.approx(worker.logps(exported, examples), rel=1e-5)
    assert theirs != pytest.approx(worker.logps(str(initial), examples), rel=1e-3)


@pytest.fixture(scope="module")
def source(model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration that samples with vLLM."""
    import yaml

    from tests.conftest import tiny_tree

    folder = tmp_path_factory.mktemp("vllm")
    tree = tiny_tree.__wrapped__({"initial": model, "aligned": model}, folder)  # type: ignore[attr-defined]
    tree["generate"] |= {"backend": "vllm", "batch_size": 2}
    (folder / "run.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    return folder / "run.yaml"


def test_a_killed_stage_continues_with_the_missing_batches(source: Path, cli: Cli, tmp_path: Path) -> None:
    """After kill -9 during the stage, two workers compute the rest. The rows equal those of an undisturbed run."""
    run = tmp_path / "killed"
    command = [sys.executable, "-m", "xlr", "generate", str(source), f"run_dir={run}"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    parts = run / "iter1" / "responses.parts"
    wait_until(lambda: list(parts.rglob("*.parquet")), "the first piece")
    samplers = descendants(process.pid, lambda child: child.name().startswith("ray::RemoteWorker"))
    assert samplers
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not psutil.wait_procs(samplers, timeout=60)[1], "engines are left"
    assert len(list(parts.rglob("*.parquet"))) < 12
    resumed = cli("generate", source, f"run_dir={run}", "ray.actors=2", "ray.cpus_per_actor=1")
    assert resumed.returncode == 0, resumed.stderr
    undisturbed = cli("generate", source)
    assert undisturbed.returncode == 0, undisturbed.stderr
    rows = read_rows(run / "iter1" / "responses", Response)
    assert rows == read_rows(source.parent / "run" / "iter1" / "responses", Response)
    assert len({(row.lang, row.id, row.sample) for row in rows}) == len(rows) == 24
    manifest = read_json(run / "iter1" / "responses.manifest.json")
    assert manifest["settings"]["generate.backend"] == "vllm"
    other = cli("generate", source, f"run_dir={run}", "generate.backend=transformers")
    assert other.returncode == 2
    assert "generate.backend was 'vllm' and is now 'transformers'" in other.stderr


def test_samplers_free_their_memory_for_scorers(source: Path, cli: Cli) -> None:
    """One evaluation samples answers with vLLM and scores with torch."""
    result = cli("evaluate", source, "--iteration", 0)
    assert result.returncode == 0, result.stderr
    answers = read_rows(source.parent / "run" / "iter0" / "eval" / "responses", Response)
    scores = read_rows(source.parent / "run" / "iter0" / "eval" / "scores", Score)
    assert len(answers) == 4
    assert {row.reward for row in scores} == {0.0}


@pytest.fixture(scope="module")
def served_judge(vllm: Any, smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[servedjudge.Server]:
    """vLLM's own OpenAI-compatible server on loopback, with the real small model as judge."""
    command = f"{sys.executable} -m vllm.entrypoints.openai.api_server --model {{model}} --served-model-name judge"
    command += " --host 127.0.0.1 --port {port} --dtype float32 --enforce-eager --max-model-len 1024"
    judge = config.JudgeConfig(model=str(smollm2), serve=command)
    with servedjudge.serving(judge, tmp_path_factory.mktemp("server") / "server.log") as served:
        assert served is not None
        yield served


def test_preferences_of_a_real_judge_equal_its_probabilities(
    served_judge: servedjudge.Server, smollm2: Path, tiny_tree: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", served_judge.key)
    template = judgeprompt.DEFAULT
    asked = [
        judgeprompt.fill(template, "Name a colour.", first, second, "English")
        for first, second in [("Blue.", "I am a table."), ("I am a table.", "Blue."), ("Red", "word " * 1000)]
    ]
    path = Path(tiny_tree["run_dir"]).with_name("run.yaml")

    def ask(**settings: Any) -> tuple[list[Verdict], int]:
        tiny_tree["judge"] = {"model": "judge", "base_url": served_judge.base_url} | settings
        path.write_text(yaml.safe_dump(tiny_tree), encoding="utf-8")
        context = Context(configfile.load(path))
        return endpoint.ask(context, judgements.artifact(context, 1), "judge", asked, ["en"] * 3)

    found, paid = ask()
    assert paid == 2
    assert math.isnan(found[2].preference)
    assert found[2].answer.startswith("refused: ")
    encoder = ChatEncoder(load_tokenizer(smollm2), "judge")
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    for question, verdict in zip(asked[:2], found[:2], strict=True):
        prompt = encoder.prompt_of(question)
        logps_V = model(torch.tensor([prompt])).logits[0, -1].double().log_softmax(-1)
        spelt = {encoder.tokenizer.decode([index]): logps_V[index].item() for index in logps_V.topk(20).indices}
        assert verdict.preference == pytest.approx(judgeprompt.weighted(spelt), abs=1e-3)
        assert verdict.prompt_tokens == len(prompt)
    again, paid = ask()
    assert (again[:2], paid) == (found[:2], 0)
    choices, paid = ask(preference="choice", extra_body={"structured_outputs": {"choice": ["m", "M"]}})
    assert paid == 2
    assert {verdict.preference for verdict in choices[:2]} <= {0.0, 1.0}
