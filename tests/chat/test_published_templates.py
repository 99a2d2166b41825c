"""The chat templates that the package trl ships: each encodes rightly, or is refused.

docs/templates.md has this table.
"""

import re
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from tests.conftest import required
from xlr.chat.encoding import ChatEncoder
from xlr.chat.format import ChatFormat
from xlr.errors import UserError
from xlr.selftest.material import byte_level_bpe

DOCUMENT = Path(__file__).parents[2] / "docs" / "templates.md"
THINKING_OFF = {"enable_thinking": False}

# name -> what `model.chat_template_kwargs` must be set to
NEEDS_ARGUMENTS = dict.fromkeys(
    ("nemotron_3_5_lightning", "nemotron_3_nano", "nemotron_3_super", "nemotron_3_ultra"), THINKING_OFF
)
# name -> part of the message
REFUSED = {
    "deepseek_r1_distill": "does not begin with the template's own generation prompt",
    "deepseekv3": "does not begin with the template's own generation prompt",
    "idefics3": "drops a message",
    "llava_next": "has no attribute 'text'",
    "smolvlm": "drops a message",
}
THINK = {
    *("deepseek_r1_distill", "deepseekv3", "glm4moe", "qwen3", "qwen3_5_think", "qwen3_6", "qwen3_8"),
    *NEEDS_ARGUMENTS,
}
QUESTION, ANSWER = "¿Por qué es azul el cielo?", "Por la dispersión de Rayleigh."
TOKENS = re.compile(r"<[|｜]?[A-Za-z/][\w｜▁/ ]*[|｜]?>|\[/?[A-Z_]+\]")


def names() -> list[str]:
    try:
        import trl
    except ImportError:
        return []
    folder = Path(trl.__file__).parent / "chat_templates"
    return sorted(file.stem for file in folder.glob("*.jinja") if not file.stem.endswith("_training"))


def tokenizer(name: str) -> Any:
    """A small tokenizer with the tokens that a template writes; those of thinking are no special ones, as published."""
    text = (Path(required("trl").__file__).parent / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")
    marks = sorted(set(TOKENS.findall(text)))
    special = [mark for mark in marks if re.search(r"[|｜]|_turn>", mark)]
    others = [token for token in special if token not in ("<bos>", "<eos>")]
    fast = PreTrainedTokenizerFast(
        tokenizer_object=byte_level_bpe(600, ["<bos>", "<eos>", *others]),
        bos_token="<bos>",
        eos_token="<eos>",
        additional_special_tokens=others,
    )
    fast.add_tokens(["<think>", "</think>"])
    fast.chat_template = text
    return fast


CASES = names() or ["trl is not installed"]


@pytest.mark.parametrize("name", CASES)
def test_a_prompt_is_a_prefix_of_its_conversation_which_ends_with_one_terminator(name: str) -> None:
    if name in REFUSED:
        with pytest.raises(UserError, match=re.escape(REFUSED[name])):
            ChatEncoder(tokenizer(name), name)
        return
    arguments = NEEDS_ARGUMENTS.get(name, {})
    if arguments:
        with pytest.raises(UserError, match=r"set model\.chat_template_kwargs to \{enable_thinking: false\}"):
            ChatEncoder(tokenizer(name), name)
    own = tokenizer(name)
    encoder = ChatEncoder(own, name, ChatFormat(arguments=arguments))
    text = ChatFormat().dated(own.chat_template)
    conversation = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]
    whole = own.apply_chat_template(
        conversation, chat_template=text, tokenize=True, return_dict=False, date_string="26 Jul 2024", **arguments
    )
    prompt, answer = encoder.prompt(QUESTION), encoder.response(ANSWER)
    bos = own.bos_token_id
    assert whole[: len(prompt)] == list(prompt)
    assert whole[len(prompt) :][: len(answer) - 1] == list(answer[:-1])
    assert whole[len(prompt) + len(answer) - 1 :][:1] in ([answer[-1]], [])  # GLM's writes none after the last answer
    assert answer[-1] in own.all_special_ids
    assert not set(answer[:-1]) & set(own.all_special_ids)
    assert prompt.count(bos) <= 1
    assert own.decode(prompt).count(QUESTION) == 1


@pytest.mark.parametrize("name", CASES)
def test_a_model_thinks_where_its_template_has_a_think_block(name: str) -> None:
    if name not in THINK:
        with pytest.raises(UserError, match=r"writes no think block|drops a message|has no attribute"):
            ChatEncoder(tokenizer(name), name, ChatFormat(thinking=True))
        return
    own = tokenizer(name)
    encoder = ChatEncoder(own, name, ChatFormat(thinking=True))
    asked = [{"role": "user", "content": QUESTION}]
    text = ChatFormat().dated(own.chat_template)
    prompt = own.apply_chat_template(asked, chat_template=text, tokenize=False, add_generation_prompt=True)
    assert own.decode(encoder.prompt(QUESTION)) == prompt
    response = f"The sky is blue.\n</think>\n\n{ANSWER}"
    assert encoder.thought(response) == "The sky is blue.\n</think>\n\n"
    assert encoder.thought("It is cut off") == "It is cut off"
    assert encoder.response(response)[-1] == encoder.terminator_id
    assert own.decode(encoder.response(response)[:-1]) == response


@pytest.mark.parametrize("name", ["gptoss", "llama3_2", "muse_glimmer"])
def test_the_date_is_that_of_the_run(name: str) -> None:
    required("trl")
    for day in (date(2024, 7, 26), date(2026, 1, 2)):
        text = tokenizer(name).decode(ChatEncoder(tokenizer(name), name, ChatFormat(day=day)).prompt("x"))
        found = {day.isoformat(), day.strftime("%d %b %Y")}
        assert any(written in text for written in found) or name == "llama3_2"  # writes it for tools only


def test_the_documentation_has_this_table() -> None:
    known = names()
    if not known:
        required("trl")
    text = DOCUMENT.read_text(encoding="utf-8")
    for name in known:
        if name in REFUSED:
            cell = "refused; thinks" if name in THINK else "refused"
        elif name in NEEDS_ARGUMENTS:
            cell = "with `{enable_thinking: false}`; thinks"
        else:
            cell = "yes; thinks" if name in THINK else "yes"
        assert f"| `{name}` | {cell} |" in text
