"""Runs whose prompts are conversations, with a system message by language, another chat template, or thinking."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests import inprocess, tiny
from tests.conftest import RAY_TOKEN, Cli, assert_refused
from tests.model.test_rewardmodel import own_rating
from xlr.chat.encoding import ChatEncoder, load_tokenizer
from xlr.chat.format import chat_format
from xlr.configfile import load
from xlr.maths.rewards import crosslingual_instruction
from xlr.records import Message, Pair, Response, Score, messages
from xlr.rewarding import scores
from xlr.rewarding.modes import score_rows
from xlr.run.context import Context
from xlr.run.manifests import rows_of
from xlr.work.dropped import Dropped

Write = Callable[[dict[str, Any]], Path]

THINKING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' %}<think>\n\n</think>\n\n{% endif %}{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if not enable_thinking | default(true) %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
SYSTEM = {"en": "Answer in one sentence.", "es": "Responde en una frase."}
HISTORY = {
    "en": [("user", "Hello"), ("assistant", "Hello! How can I help?")],
    "es": [("user", "Hola"), ("assistant", "¡Hola! ¿En qué puedo ayudar?")],
}
LAST = {"en": ["Name a fruit.", "Name a river."], "es": ["Di una fruta.", "Di un río."]}


def plain_logp(model: Path, prompt: str, text: str) -> float:
    """The log-probability of a text and <|im_end|> after a prompt, token by token."""
    tokenizer, causal_lm = AutoTokenizer.from_pretrained(model), AutoModelForCausalLM.from_pretrained(model)
    before = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    after = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.convert_tokens_to_ids("<|im_end|>")]
    with torch.no_grad():
        logps_TV = causal_lm(torch.tensor([before + after])).logits[0].double().log_softmax(-1)
    return sum(float(logps_TV[len(before) + place - 1, token]) for place, token in enumerate(after))


def chatml(turns: list[tuple[str, str]]) -> str:
    return "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in turns) + "<|im_start|>assistant\n"


@pytest.fixture
def conversations(tiny_tree: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """A configuration with prompts of several turns, one of them with a system message of its own."""
    folder = tmp_path / "conversations"
    folder.mkdir()
    for lang in ("en", "es"):
        rows = []
        for number, last in enumerate(LAST[lang]):
            turns = [*HISTORY[lang], ("user", last)] if number == 0 else [("system", "Be kind."), ("user", last)]
            rows.append({"id": number, "messages": [{"role": role, "content": text} for role, text in turns]})
        (folder / f"{lang}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    tiny_tree["prompts"] = {"path": str(folder)}
    tiny_tree["model"]["system_prompt"] = SYSTEM
    del tiny_tree["evaluate"]
    return tiny_tree


def asked(lang: str, key: str, last: str) -> list[tuple[str, str]]:
    """The turns before a response, written down a second time."""
    if key == "0":
        return [("system", SYSTEM[lang]), *HISTORY[lang], ("user", last)]
    return [("system", "Be kind."), ("user", last)]


def test_conversations_and_system_messages_are_in_samples_scores_and_pairs(
    conversations: dict[str, Any], write_config: Write, cli_here: Cli, tiny_models: dict[str, Path]
) -> None:
    config = write_config(conversations)
    for stage in ("generate", "score", "pair"):
        done = cli_here(stage, config)
        assert done.returncode == 0, done.stderr
    iteration = Path(conversations["run_dir"]) / "iter1"
    found: list[Score] = list(rows_of(iteration / "scores", Score))
    assert {(row.lang, row.id) for row in found} == {(lang, key) for lang in ("en", "es") for key in ("0", "1")}
    for row in found:
        english = LAST["en"][int(row.id)]
        language = {"en": "English", "es": "Spanish"}[row.lang]
        prompt = chatml(asked("en", row.id, crosslingual_instruction(english, row.lang, language)))
        assert row.logp_policy == pytest.approx(plain_logp(tiny_models["aligned"], prompt, row.response), abs=2e-3)
        assert row.logp_reference == pytest.approx(plain_logp(tiny_models["initial"], prompt, row.response), abs=2e-3)
    for pair in rows_of(iteration / "pairs", Pair):
        turns = asked(pair.lang, pair.id, LAST[pair.lang][int(pair.id)])
        assert pair.prompt == [{"role": role, "content": text} for role, text in turns]

    other = conversations | {"model": conversations["model"] | {"system_prompt": SYSTEM | {"es": "Sé breve."}}}
    assert_refused(cli_here("score", write_config(other)), "model.system_prompt")


def test_the_system_message_needs_every_language_of_the_run_and_no_other(
    conversations: dict[str, Any], write_config: Write, cli_here: Cli
) -> None:
    for given, message in (
        ({"es": "x"}, "model.system_prompt: has no text for en; add one"),
        (SYSTEM | {"de": "x"}, "model.system_prompt: 'de' is not a language of the run; remove it"),
    ):
        conversations["model"]["system_prompt"] = given
        assert_refused(cli_here("data", write_config(conversations)), message)


@pytest.fixture
def thinking(tiny_tree: dict[str, Any], tmp_path: Path) -> Iterator[dict[str, Any]]:
    (tmp_path / "template.jinja").write_text(THINKING, encoding="utf-8")
    tiny_tree["model"]["chat_template"] = str(tmp_path / "template.jinja")
    del tiny_tree["evaluate"]
    return tiny_tree


TEXTS = ["<think>\nun río\n</think>\n\nEl Ebro.", "<think>\nno acaba", "<think>\n</think>\n\n", "Sin pensar."]


@pytest.mark.parametrize("mode", ["scored", "unscored"])
def test_the_reward_counts_the_think_block_or_leaves_it_out(
    mode: str,
    thinking: dict[str, Any],
    write_config: Write,
    tiny_models: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", RAY_TOKEN)
    thinking["model"]["thinking"] = mode
    context = Context(load(str(write_config(thinking)), []))
    prompt = context.prompts["es"][0]
    rows = [Response(prompt.id, "es", number, text, [1], "stop") for number, text in enumerate(TEXTS)]
    dropped = Dropped()
    try:
        target = scores.artifact(context, 1)
        found = score_rows(context, target, "multilingual", rows, 1, "test", dropped)
    finally:
        context.close()
    before = chatml([("user", prompt.instruction)])
    assert [row.sample for row in found] == ([0, 1, 2, 3] if mode == "scored" else [0])
    for row in found:
        whole = TEXTS[row.sample]
        thought, text = (whole[:-8], "El Ebro.") if mode == "unscored" else ("", whole)
        assert row.scored_text == text
        assert row.num_chars == len(text)
        assert row.response == whole
        expected = plain_logp(tiny_models["aligned"], before + thought, text)
        assert row.logp_policy == pytest.approx(expected, abs=2e-3)
    reasons = {"es": {"no answer after thinking": 3}} if mode == "unscored" else {}
    assert dropped.counts() == reasons


@pytest.mark.parametrize("mode", ["scored", "unscored"])
def test_a_reward_model_reads_the_answer_without_its_think_block(
    mode: str, thinking: dict[str, Any], write_config: Write, tmp_path: Path
) -> None:
    model = tiny.save_reward_model(tmp_path / "rm", 3, "llama3")
    thinking["model"]["thinking"] = mode
    thinking["score"] |= {"reward": "model", "model": str(model)}
    context = inprocess.opened(load(str(write_config(thinking)), []), tmp_path / "run")
    prompt = context.prompts["es"][0]
    rows = [Response(prompt.id, "es", number, text, [1], "stop") for number, text in enumerate(TEXTS)]
    dropped = Dropped()
    (found,) = score_rows(context, scores.artifact(context, 1), "model", rows, 1, "test", dropped)
    turns = [*messages(prompt.conversation), Message(role="assistant", content="El Ebro.")]
    assert found.reward == pytest.approx(own_rating(model, turns), abs=1e-5)
    assert dropped.counts() == {"es": {"no answer after thinking": 3}}


def test_without_thinking_the_empty_block_belongs_to_the_prompt(
    thinking: dict[str, Any], write_config: Write, tiny_models: dict[str, Path]
) -> None:
    expected = chatml([("user", "Hola")]) + "<think>\n\n</think>\n\n"
    tokenizer = load_tokenizer(tiny_models["aligned"])
    for arguments in ({}, {"enable_thinking": False}, {"enable_thinking": True}):
        thinking["model"]["chat_template_kwargs"] = arguments
        section = load(str(write_config(thinking)), []).model
        encoder = ChatEncoder(tokenizer, "tiny", chat_format(section))
        assert tokenizer.decode(encoder.prompt("Hola")) == expected


def test_a_template_for_base_models_is_used_and_given_to_the_trained_model(
    thinking: dict[str, Any], write_config: Write, cli_here: Cli, tmp_path: Path
) -> None:
    """pi_I is a base model without a template, as Llama-3-8B is."""
    base = tiny.save(tmp_path / "base", seed=1)
    for file in base.glob("chat_template*"):
        file.unlink()
    settings = json.loads((base / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings.pop("chat_template", None)
    (base / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    thinking["model"]["initial"] = str(base)
    done = cli_here("run", write_config(thinking))
    assert done.returncode == 0, done.stderr
    trained = AutoTokenizer.from_pretrained(Path(thinking["run_dir"]) / "iter1" / "model")
    assert trained.chat_template == THINKING
    asked: list[Message] = [{"role": "user", "content": "Hola"}]
    assert ChatEncoder(trained, "trained").prompt_of(asked) == ChatEncoder(
        trained, "run", chat_format(load(str(write_config(thinking)), []).model)
    ).prompt_of(asked)
