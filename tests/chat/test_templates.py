"""Chat templates that change messages, loop, or take all memory are refused; those that trim white space are not."""

import os
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import tiny
from tests.chat.test_encoding import encoder, with_template
from xlr.chat import templates
from xlr.chat.encoding import ChatEncoder
from xlr.errors import UserError


def of_content(expression: str) -> str:
    """A template that writes this expression in place of a message's content."""
    return tiny.CHATML.replace("m['content']", expression)


def of_role(role: str, expression: str) -> str:
    return of_content(f"{expression} if m['role'] == '{role}' else m['content']")


REFUSED = {
    "m.content[:2048]": "only the first 2,046 come out",
    "m.content[-1000:]": "only the last 998 come out",
    "m.content | truncate(3000)": "only the first",
    "m.content | lower": "changes upper and lower case",
    "m.content | upper": "changes upper and lower case",
    "m.content | capitalize": "changes upper and lower case",
    "m.content.split() | join(' ')": "changes white space inside a message",
    "m.content.replace('\n', '')": "changes white space inside a message",
    "m.content | wordwrap": "changes white space inside a message",
    "m.content.replace('<|x|>', '')": "drops or changes a part of a message",
    "m.content.replace('{{', '')": "drops or changes a part of a message",
    "m.content | striptags": "drops or changes a part of a message",
    "m.content | e": "drops or changes a part of a message",
    "m.content | tojson": "drops or changes a part of a message",
    "m.content[::-1]": "drops a message",
    "''": "drops a message",
    "m.content + m.content": "more than once",
    "m.content ~ (range(99999) | random)": "writes something that changes",
    "m.content + lipsum()": "writes something that changes",
    "m.content + strftime_now('%d %b ' ~ '%Y')": "writes something that changes",
    "m.content + 'x' * 10 ** 10": "takes too much memory",
    "m.content + 1 / 0": "ZeroDivisionError",
    "m.content | missing": "No filter named 'missing'",
    "m.missing.content": "UndefinedError",
    "m.content.__class__.__mro__": "SecurityError",
}


@pytest.mark.parametrize("expression", REFUSED)
def test_a_template_that_does_not_write_messages_as_they_are_is_refused(expression: str) -> None:
    with pytest.raises(UserError, match=REFUSED[expression]) as refused:
        ChatEncoder(with_template("qwen", of_content(expression)), "some/model")
    assert str(refused.value).startswith("some/model: the chat template ")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("role", ["user", "assistant"])
@pytest.mark.parametrize("expression", ["'ok'", "m.content[:3000]", "m.content | title"])
def test_a_template_that_changes_the_messages_of_one_role_is_refused(role: str, expression: str) -> None:
    with pytest.raises(UserError, match=f"the {role}'s message"):
        ChatEncoder(with_template("qwen", of_role(role, expression)), "some/model")


def test_a_template_that_changes_the_order_is_refused() -> None:
    with pytest.raises(UserError, match="writes messages in another order"):
        ChatEncoder(with_template("qwen", tiny.CHATML.replace("in messages", "in messages | reverse")), "some/model")


LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
HANGING = {
    "a loop": LOOP,
    "a power": "{{ 10 ** (10 ** 9) }}",
    "a loop for system messages": "{% if messages[0].role == 'system' %}" + LOOP + "{% endif %}",
    "much text": "{% for a in range(99999) %}{{ 'x' * 9999 }}{% endfor %}",
    "memory": "{% set n = namespace(a='x') %}{% for i in range(60) %}{% set n.a = n.a + n.a %}{% endfor %}",
}


@pytest.mark.parametrize("kind", HANGING)
def test_a_template_that_takes_long_or_much_memory_is_refused_in_time(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(templates, "_SECONDS", 2)
    before, begun = children(), time.monotonic()  # other tests of this process may have left helpers
    with pytest.raises(UserError, match=r"takes (more than 2 s|too much memory)"):
        ChatEncoder(with_template("qwen", HANGING[kind] + tiny.CHATML), "some/model")
    assert time.monotonic() - begun < 8
    assert children() <= before, "a child is left"


def children() -> set[str]:
    """Process ids of this process's children."""
    return {pid for file in Path("/proc/self/task").glob("*/children") for pid in file.read_text().split()}


@pytest.mark.parametrize("trimmed", ["m.content | trim", "m.content.strip()", "m.content.lstrip()", "' ' + m.content"])
def test_a_template_may_trim_white_space_around_messages(trimmed: str) -> None:
    template = of_role("user", trimmed)
    assert ChatEncoder(with_template("qwen", template), "some/model").prompt("a  b")


def test_llamas_date_is_always_the_same() -> None:
    dated = "{% if not date_string is defined %}{% set date_string = strftime_now('%d') %}{% endif %}{{ date_string }}"
    found = ChatEncoder(with_template("qwen", dated + tiny.CHATML), "some/model")
    assert found.decode(list(found.prompt("Hello"))).startswith("26 Jul 2024")


def test_what_a_template_does_to_an_unusual_message_is_noticed_where_it_is_used() -> None:
    """As templates of reasoning models do: no probe knows every text that a template treats differently."""
    thinking = of_content("m['content'].split('</think>')[-1]")
    found = ChatEncoder(with_template("qwen", thinking), "some/model")
    assert found.prompt("Hello")
    with pytest.raises(UserError, match=r"the user's message 'What does </think> mean\?'"):
        found.prompt("What does </think> mean?")


@settings(max_examples=30, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=200))
def test_every_message_is_in_its_prompt(text: str) -> None:
    ids = encoder("qwen").prompt(text)
    assert text.strip() in encoder("qwen").tokenizer.decode(ids)


@settings(max_examples=30, deadline=None)
@given(st.text("{}%|[]()ab 1'm.content", max_size=40))
def test_any_template_is_accepted_or_refused_with_one_line(template: str) -> None:
    said = "some/model: the chat template "
    try:
        ChatEncoder(with_template("qwen", template or "x"), "some/model")
    except UserError as error:
        said = str(error)
    assert "\n" not in said
    assert said.startswith("some/model: the chat template ")


def test_too_long_conversations_are_noticed_without_tokenising_short_ones() -> None:
    found = encoder("qwen")
    for text in ("Hello", "Hello " * 50):
        tokens = len(found.prompt(text))
        assert found.tokens_beyond([{"role": "user", "content": text}], tokens) is None
        assert found.tokens_beyond([{"role": "user", "content": text}], tokens - 1) == tokens
    assert not found.may_exceed(["Hello"], 1000)


def test_a_machine_without_room_for_a_process_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def scarce() -> int:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(os, "fork", scarce)
    with pytest.raises(UserError, match=r"no process can be started to try a chat template \(Cannot allocate memory\)"):
        ChatEncoder(encoder("qwen").tokenizer, "some/model")
