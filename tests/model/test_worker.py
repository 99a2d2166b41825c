"""Sampling with transformers: a response depends on its request, not on its batch."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests import tiny
from xlr.chat.encoding import ChatEncoder, load_tokenizer
from xlr.errors import UserError
from xlr.model import weights
from xlr.model.logprobmodel import require_sound_logps
from xlr.model.worker import Worker
from xlr.records import Example, SampleRequest, SampleSettings
from xlr.settings.modelconfig import SHARED_PROMPT

PROMPTS = ["Hola", "Why do leaves fall in autumn, and where do they go?", "¿Qué?", "Nenne drei Vögel."]


@pytest.fixture(scope="module")
def encoder(tiny_models: dict[str, Path]) -> ChatEncoder:
    return ChatEncoder(load_tokenizer(tiny_models["initial"]), "initial")


@pytest.fixture(scope="module")
def worker() -> Worker:
    return Worker(None, "float32", SHARED_PROMPT)


def settings(encoder: ChatEncoder, temperature: float = 1.0, top_p: float = 1.0, top_k: int = 0) -> SampleSettings:
    return SampleSettings(temperature, top_p, top_k, 16, tuple(encoder.stop_ids([])))


def requests(encoder: ChatEncoder) -> list[SampleRequest]:
    return [SampleRequest(encoder.prompt(text), seed) for seed, text in enumerate(PROMPTS)]


def test_a_response_does_not_depend_on_its_batch(
    worker: Worker, encoder: ChatEncoder, tiny_models: dict[str, Path]
) -> None:
    model, rows = str(tiny_models["aligned"]), requests(encoder)
    together = worker.sample(model, rows, settings(encoder))
    alone = [worker.sample(model, [row], settings(encoder))[0] for row in rows]
    backwards = worker.sample(model, rows[::-1], settings(encoder))[::-1]
    assert together == alone == backwards


def test_other_seeds_give_other_responses(worker: Worker, encoder: ChatEncoder, tiny_models: dict[str, Path]) -> None:
    rows = [SampleRequest(encoder.prompt(PROMPTS[1]), seed) for seed in range(6)]
    answers = worker.sample(str(tiny_models["aligned"]), rows, settings(encoder))
    assert len({tuple(tokens) for tokens, _ in answers}) > 3


def test_temperature_zero_and_top_k_one_are_both_the_model_s_greedy_choice(
    worker: Worker, encoder: ChatEncoder, tiny_models: dict[str, Path]
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_models["aligned"])
    for how in (settings(encoder, temperature=0.0), settings(encoder, top_k=1)):
        for row, (tokens, reason) in zip(
            requests(encoder), worker.sample(str(tiny_models["aligned"]), requests(encoder), how), strict=True
        ):
            ids = list(row.prompt)
            while len(ids) - len(row.prompt) < how.max_new_tokens:
                with torch.no_grad():
                    token = int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
                if token in how.stop_ids:
                    break
                ids.append(token)
            assert tokens == ids[len(row.prompt) :]
            assert reason == ("length" if len(tokens) == how.max_new_tokens else "stop")


def test_every_stop_token_ends_a_response(worker: Worker, encoder: ChatEncoder, tiny_models: dict[str, Path]) -> None:
    how = settings(encoder, temperature=0.0)
    ((tokens, _),) = worker.sample(str(tiny_models["aligned"]), requests(encoder)[1:2], how)
    stop = SampleSettings(0.0, 1.0, 0, 16, (*how.stop_ids, tokens[2]))
    ((cut, reason),) = worker.sample(str(tiny_models["aligned"]), requests(encoder)[1:2], stop)
    assert (cut, reason) == (tokens[: tokens.index(tokens[2])], "stop")


def test_both_models_are_scored_under_the_same_tokens(
    worker: Worker, encoder: ChatEncoder, tiny_models: dict[str, Path]
) -> None:
    examples = [Example(encoder.prompt("Hola"), (encoder.response("Sí."), encoder.response("No, gracias.")))]
    initial, aligned = str(tiny_models["initial"]), str(tiny_models["aligned"])
    ((first, second),) = worker.score((aligned, initial), examples)
    assert [first[0], second[0]] == pytest.approx(worker.logps(aligned, examples))
    assert [first[1], second[1]] == pytest.approx(worker.logps(initial, examples))
    ((same, _),) = worker.score((initial, initial), examples)
    assert same[0] == same[1]


def test_a_model_that_does_not_fit_the_gpu_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB. And more")

    monkeypatch.setattr(weights, "load_causal_lm", no_memory)
    with pytest.raises(UserError, match=r"does not fit .* \(CUDA out of memory\); set ray.one_model_at_a_time"):
        Worker(None, "float32", SHARED_PROMPT).logps("big", [Example((1,), ((2,),))])


def test_an_architecture_that_the_fast_path_gets_wrong_is_refused() -> None:
    model = tiny.make_model(64)
    model.set_attn_implementation(SHARED_PROMPT)
    require_sound_logps(model, SHARED_PROMPT, "sound")
    plain = model.lm_head.forward
    model.lm_head.forward = lambda hidden: torch.tanh(plain(hidden))  # a soft cap in the model that the fast path lacks
    with pytest.raises(UserError, match="differ from the model's own"):
        require_sound_logps(model, SHARED_PROMPT, "capped")


def test_the_model_s_generation_config_does_not_affect_samples(
    worker: Worker, encoder: ChatEncoder, tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_models["aligned"])
    model.config.use_cache = False
    model.generation_config.update(repetition_penalty=5.0, no_repeat_ngram_size=1, use_cache=False, max_length=30)
    model.save_pretrained(tmp_path)
    for how in (settings(encoder), settings(encoder, temperature=0.0)):
        own = worker.sample(str(tmp_path), requests(encoder), how)
        assert own == worker.sample(str(tiny_models["aligned"]), requests(encoder), how)


def test_a_worker_scores_in_its_own_precision_unless_told_otherwise(
    worker: Worker, encoder: ChatEncoder, tiny_models: dict[str, Path]
) -> None:
    model, rounding = str(tiny_models["initial"]), Worker(None, "bfloat16", SHARED_PROMPT)
    examples = [Example(encoder.prompt(PROMPTS[0]), (encoder.response(PROMPTS[1]),))]
    assert rounding.logps(model, examples) == worker.logps(model, examples, "bfloat16")
    assert rounding.logps(model, examples, "float32") == worker.logps(model, examples)
    assert rounding.logps(model, examples) != worker.logps(model, examples)
