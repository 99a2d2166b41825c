"""Instructions and responses as token ids: chat template, one BOS, one terminator.

The prompt and the response are tokenised apart and joined, exactly as at sampling time, where the model
continues the prompt's tokens. A response always ends with the terminator: the token that the chat template
puts after an assistant's turn.
"""

import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2

from xlr.errors import UserError
from xlr.records import Message

_PROBE = "xlr probe"
_TEXTS_AT_ONCE = 1024  # the tokenizer's own form of an answer takes many times the memory of its ids


class ChatEncoder:
    """Encodes with a tokenizer's own chat template.

    Raises:
        UserError: no chat template; a template that does not keep the prompt as a prefix of the conversation;
            no end-of-turn token; a doubled BOS.
    """

    def __init__(self, tokenizer: Any, name: str):
        self.tokenizer = tokenizer
        self.name = name
        if not getattr(tokenizer, "chat_template", None):
            raise UserError(
                f"{name}: the tokenizer has no chat template; add a chat_template.jinja to the model's folder "
                "(the one the model was aligned with)"
            )
        self._numbers: dict[int, int] = {}
        self.terminator_id = self._find_terminator()
        self._check_bos()

    def _render(self, messages: list[Message], generation_prompt: bool) -> str:
        try:
            text: str = self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=generation_prompt
            )
        except jinja2.TemplateError as error:
            roles = ", ".join(message["role"] for message in messages)
            raise UserError(
                f"{self.name}: the chat template does not accept a conversation of {roles} ({error})"
            ) from error
        return text

    def _tokenize(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _find_terminator(self) -> int:
        """The first token after an assistant's content in the rendered template, else the model's EOS."""
        question: list[Message] = [{"role": "user", "content": _PROBE}]
        prompt = self._render(question, True)
        full = self._render([*question, {"role": "assistant", "content": _PROBE}], False)
        if not full.startswith(prompt + _PROBE):
            raise UserError(
                f"{self.name}: the chat template renders a conversation that does not begin with its own generation "
                "prompt; use a template whose assistant turn follows add_generation_prompt unchanged"
            )
        rest = self._tokenize(full[len(prompt + _PROBE) :])
        terminator = rest[0] if rest and rest[0] in self._special_ids else self.tokenizer.eos_token_id
        if terminator is None:
            raise UserError(
                f"{self.name}: neither the chat template nor the tokenizer names an end-of-turn token; "
                "set eos_token in tokenizer_config.json"
            )
        return int(terminator)

    @cached_property
    def _special_ids(self) -> frozenset[int]:
        added = {index for index, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        return frozenset(added | set(self.tokenizer.all_special_ids))

    @cached_property
    def _special_texts(self) -> list[str]:
        return list(self.tokenizer.convert_ids_to_tokens(sorted(self._special_ids)))

    @cached_property
    def _bos_id(self) -> int | None:
        """The BOS token, if the tokenizer puts one before plain text."""
        bos, ids = self.tokenizer.bos_token_id, self.tokenizer("a")["input_ids"]
        return bos if bos is not None and ids[0] == bos else None

    def _check_bos(self) -> None:
        if self._bos_id is None:
            return
        count = self.prompt(_PROBE).count(self._bos_id)
        # A template may use the BOS token as its turn marker; only a doubled start is a fault.
        if count != 1 and self.prompt(_PROBE)[:2] == (self._bos_id, self._bos_id):
            raise UserError(f"{self.name}: the chat template puts two BOS tokens before a prompt; remove one from it")

    def stop_ids(self, generation_eos: int | list[int] | None) -> list[int]:
        """Every token that ends a response: the terminator, the tokenizer's EOS, the generation config's."""
        extra = generation_eos if isinstance(generation_eos, list) else [generation_eos]
        candidates = [self.terminator_id, self.tokenizer.eos_token_id, *extra]
        return list(dict.fromkeys(int(token) for token in candidates if token is not None))

    def prompt(self, instruction: str) -> tuple[int, ...]:
        """Token ids of a single user turn up to where the assistant's answer begins."""
        return self.prompt_of([{"role": "user", "content": instruction}])

    def prompt_of(self, messages: list[Message]) -> tuple[int, ...]:
        """Token ids of a conversation up to where the assistant's answer begins, with exactly one BOS."""
        spelled = any(token in message["content"] for message in messages for token in self._special_texts)
        ids = self._tokenize_apart(messages) if spelled else self._tokenize(self._render(messages, True))
        if self._bos_id is not None and ids[:1] != [self._bos_id]:
            ids = [self._bos_id, *ids]
        return tuple(ids)

    def _tokenize_apart(self, messages: list[Message]) -> list[int]:
        """Template and contents tokenised apart, so that a special token spelled out by a user stays text."""
        marks = {f"\ue000{number}\ue001": message["content"] for number, message in enumerate(messages)}
        marked: list[Message] = [
            {"role": message["role"], "content": mark} for message, mark in zip(messages, marks, strict=True)
        ]
        ids: list[int] = []
        for piece in re.split("(\ue000[0-9]+\ue001)", self._render(marked, True)):
            ids += self._tokenize_content(marks[piece]) if piece in marks else self._tokenize(piece)
        return ids

    def _tokenize_content(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return ids

    def response(self, text: str) -> tuple[int, ...]:
        """Token ids of an answer and its terminator. Special tokens spelled out in the text stay text."""
        return self.responses([text])[0]

    def responses(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """As `response`, of many answers on all CPUs."""
        found = []
        for start in range(0, len(texts), _TEXTS_AT_ONCE):
            some = list(texts[start : start + _TEXTS_AT_ONCE])
            encoded = self.tokenizer(
                some, add_special_tokens=False, split_special_tokens=True, return_attention_mask=False
            )
            for own in encoded["input_ids"]:
                ids = (*own, self.terminator_id)
                # Each id is one object for all answers: a scoring stage holds those of a whole iteration.
                found.append(tuple(map(self._numbers.setdefault, ids, ids)))
        return found

    def decode(self, token_ids: list[int]) -> str:
        """The text of a sampled response, without terminator and other special tokens."""
        return self.tokenizer.decode(token_ids, skip_special_tokens=True)


def load_tokenizer(model: str | Path) -> Any:
    """Open a model's tokenizer.

    Raises:
        UserError: it cannot be opened.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{model}: no tokenizer can be opened here ({_first_line(error)}); name a model folder"
        ) from error


def require_same_tokenizer(policy: Any, reference: Any, policy_name: str, reference_name: str) -> None:
    """A log-ratio is meaningless between models that cut text differently.

    Raises:
        UserError: the vocabularies or the tokens of a probe text differ.
    """
    probe = "Grüße, мир! ¿Qué tal? 你好 สวัสดี  \n\tdef f(x): return x**2 # 0.1234"
    vocab, other = policy.get_vocab(), reference.get_vocab()
    if vocab != other:
        odd = sorted(set(vocab.items()) ^ set(other.items()))[0][0]
        why = f"their vocabularies differ, for example at the token {odd!r}"
    elif policy(probe)["input_ids"] != reference(probe)["input_ids"]:
        why = "they cut the same text into different tokens"
    elif policy.chat_template != reference.chat_template:
        why = "their chat templates differ"
    else:
        return
    raise UserError(
        f"{policy_name} and {reference_name} do not share a tokenizer: {why}. The implicit reward compares "
        "log-probabilities token by token: use the model that the aligned one was trained from"
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
