"""Encodes instructions and responses as token ids, with the chat template, one BOS and one terminator.

Prompt and response are tokenised separately and then joined, because in sampling the model continues the tokens of the
prompt. A prompt contains all that the chat template writes before an answer. A response always ends with the
terminator: the token that the template puts after an assistant's turn.
"""

import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from xlr.chat import templates
from xlr.chat.format import ChatFormat
from xlr.errors import UserError
from xlr.foreign import hub, modelfiles
from xlr.records import Message

_TEXTS_AT_ONCE = 1024  # the tokenizer's encoding objects take many times the memory of the token ids
_DEFAULT = ChatFormat()
_OPENING, _CLOSING = re.compile(r"<(\w+)>\s*$"), re.compile(r"(</\w+>)\s*$")  # of a think block
_MOST_TOKENS = 4  # of a character: its bytes in UTF-8


class ChatEncoder:
    """Encodes conversations with a tokenizer and its chat template.

    Raises:
        UserError: the tokenizer has no chat template or no end-of-turn token, or the template doubles the BOS, or does
            not write messages as they are, or a rendered conversation does not begin with the rendered prompt.
    """

    def __init__(self, tokenizer: Any, name: str, chat: ChatFormat = _DEFAULT):
        self.tokenizer = tokenizer
        self.name = name
        self._arguments = chat.all_arguments
        self._template = chat.dated(self._own_template(chat.template))
        self._known_ids: dict[int, int] = {}
        exchange = templates.probe(self._apply_template, name)
        rest = self._tokenize(exchange.rest)
        self.terminator_id = self._find_terminator(rest)
        self._ending = tuple(rest) or (self.terminator_id,)
        self._between = self._anchor = ""
        self._closing: str | None = None
        if chat.thinking:
            self._closing = self._find_closing(exchange)
        else:
            self._between, self._anchor = self._find_place(exchange)
        self._check_bos()

    def _own_template(self, given: str | None) -> str:
        """The template to use: the given one, or the tokenizer's.

        Raises:
            UserError: there is none.
        """
        if given is not None:
            return given
        if not getattr(self.tokenizer, "chat_template", None):
            raise UserError(
                f"{self.name}: the tokenizer has no chat template; add a chat_template.jinja to the model's folder, or "
                "set model.chat_template (the template with which the model was aligned)"
            )
        template: str = self.tokenizer.get_chat_template()
        return template

    def _apply_template(self, messages: list[Message], generation_prompt: bool) -> str:
        text = self.tokenizer.apply_chat_template(
            messages,
            chat_template=self._template,
            tokenize=False,
            add_generation_prompt=generation_prompt,
            **self._arguments,
        )
        assert isinstance(text, str)
        return text

    def render(self, messages: list[Message]) -> str:
        """A conversation, the generation prompt, and what the template writes between it and an answer.

        Raises:
            UserError: the template fails, or does not write every message whole and in order.
        """
        try:
            text = self._apply_template(messages, True)
        except Exception as error:  # a template is foreign code: it can raise anything
            templates.refuse_render(self.name, messages, error)
        templates.require_whole(messages, text, self.name)
        return text + self._between

    def _tokenize(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _find_terminator(self, rest: Sequence[int]) -> int:
        """The special token that the template puts right after an assistant's content, else the tokenizer's EOS."""
        terminator = rest[0] if rest and rest[0] in self._special_ids else self.tokenizer.eos_token_id
        if terminator is None:
            raise UserError(
                f"{self.name}: neither the chat template nor the tokenizer has an end-of-turn token; "
                "set eos_token in tokenizer_config.json"
            )
        return int(terminator)

    def _find_place(self, exchange: templates.Exchange) -> tuple[str, str]:
        """What a prompt ends with beyond the generation prompt, and the text after which an answer is tokenised.

        Tokenizers of the SentencePiece kind put a space before a text, which not every template has there: then an
        answer is tokenised after the last character before it, whose tokens are cut off. If the template has it, it is
        a part of the answer's first token.

        Raises:
            UserError: an answer does not follow the generation prompt.
        """
        if exchange.between is None:
            switch = "enable_thinking" in self._template
            remedy = "set model.chat_template_kwargs to {enable_thinking: false}, or use" if switch else "use"
            raise UserError(
                f"{self.name}: the chat template renders an assistant turn that does not begin with the template's own "
                f"generation prompt; {remedy} a template that puts the answer after the generation prompt"
            )
        whole = self._tokenize(exchange.full)
        ends = ["", exchange.between] if exchange.between.isspace() else [exchange.between]
        for end in ends:
            before = exchange.prompt + end
            prompt_ids = self._tokenize(before)
            for anchor in ("", before[-1:]):
                ids = prompt_ids + self._after(anchor, [templates.PROBE])[0]
                if whole[: len(ids)] == ids:
                    return end, anchor
        if exchange.between.isspace():
            raise UserError(
                f"{self.name}: the chat template writes white space before an answer, which the tokenizer joins with "
                "the answer's first word; use a template without it"
            )
        return exchange.between, ""

    def _find_closing(self, exchange: templates.Exchange) -> str:
        """The tag that ends a think block, from what the template writes before an answer.

        Raises:
            UserError: the template has no think block, or its tag is a special token, which is not in a decoded text.
        """
        opened, closed = _OPENING.search(exchange.prompt), _CLOSING.search(exchange.between or "")
        tag = f"</{opened[1]}>" if opened else closed[1] if closed else None
        if tag is None:
            raise UserError(
                f"{self.name}: model.thinking is set, but the chat template writes no think block, such as "
                "<think></think>, before an answer; remove model.thinking, or set model.chat_template_kwargs so that "
                "it does"
            )
        if tag in self._special_texts:
            raise UserError(
                f"{self.name}: {tag} is a special token, so a sampled text does not show where its think block ends; "
                "remove model.thinking"
            )
        return tag

    @cached_property
    def _special_ids(self) -> frozenset[int]:
        added = {index for index, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        return frozenset(added | set(self.tokenizer.all_special_ids))

    @cached_property
    def _special_texts(self) -> list[str]:
        return list(self.tokenizer.convert_ids_to_tokens(sorted(self._special_ids)))

    @cached_property
    def _bos_id(self) -> int | None:
        """The BOS token, or None if the tokenizer adds none before plain text."""
        bos, ids = self.tokenizer.bos_token_id, self.tokenizer("a")["input_ids"]
        return bos if bos is not None and ids[:1] == [bos] else None

    def _check_bos(self) -> None:
        if self._bos_id is None:
            return
        count = self.prompt(templates.PROBE).count(self._bos_id)
        # A template may also use the BOS token as a turn marker, so only two of them at the start are an error.
        if count != 1 and self.prompt(templates.PROBE)[:2] == (self._bos_id, self._bos_id):
            raise UserError(f"{self.name}: the chat template puts two BOS tokens before a prompt; remove one")

    def stop_ids(self, generation_eos: Sequence[int]) -> list[int]:
        """The tokens that end a response: the terminator, the tokenizer's EOS and those of the generation config."""
        candidates = [self.terminator_id, self.tokenizer.eos_token_id, *generation_eos]
        return list(dict.fromkeys(int(token) for token in candidates if token is not None))

    def prompt(self, instruction: str) -> tuple[int, ...]:
        """Token ids of one user turn and the generation prompt."""
        return self.prompt_of([{"role": "user", "content": instruction}])

    def prompt_of(self, messages: list[Message]) -> tuple[int, ...]:
        """Token ids of a conversation and the generation prompt, with exactly one BOS if the tokenizer adds one."""
        spelled = any(token in message["content"] for message in messages for token in self._special_texts)
        ids = self._tokenize_apart(messages) if spelled else self._tokenize(self.render(messages))
        if self._bos_id is not None and ids[:1] != [self._bos_id]:
            ids = [self._bos_id, *ids]
        return tuple(ids)

    def tokens_beyond(self, messages: list[Message], limit: int) -> int | None:
        """The number of tokens of a conversation with its generation prompt if it exceeds a limit, else None.

        Messages that are far too short to exceed it are not tokenised.
        """
        if not self.may_exceed([message["content"] for message in messages], limit):
            return None
        tokens = len(self.prompt_of(messages))
        return tokens if tokens > limit else None

    def may_exceed(self, texts: Sequence[str], limit: int) -> bool:
        """Whether a conversation of these texts can have more tokens than a limit, judged by the characters alone."""
        return sum(map(len, texts)) * _MOST_TOKENS + len(texts) * self._frame > limit

    @cached_property
    def _frame(self) -> int:
        """Tokens that the template may put around a message, generously."""
        return 2 * len(self.prompt(templates.PROBE))

    def _tokenize_apart(self, messages: list[Message]) -> list[int]:
        """Tokenise template and contents separately, so that a special token spelled out in a content stays text."""
        marks = {f"\ue000{number}\ue001": message["content"] for number, message in enumerate(messages)}
        marked: list[Message] = [
            {"role": message["role"], "content": mark} for message, mark in zip(messages, marks, strict=True)
        ]
        ids: list[int] = []
        for piece in re.split("(\ue000[0-9]+\ue001)", self.render(marked)):
            ids += self._contents([marks[piece]])[0] if piece in marks else self._tokenize(piece)
        return ids

    def response(self, text: str) -> tuple[int, ...]:
        """Token ids of an answer and the terminator. Special tokens spelled out in the text stay text."""
        return self.responses([text])[0]

    def responses(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """Like `response`, for many answers; the tokenizer uses all CPUs."""
        found = []
        for start in range(0, len(texts), _TEXTS_AT_ONCE):
            for own in self._after(self._anchor, texts[start : start + _TEXTS_AT_ONCE]):
                ids = (*own, self.terminator_id)
                # All answers share one int object per id, because scoring keeps the ids of a whole iteration in memory.
                found.append(tuple(map(self._known_ids.setdefault, ids, ids)))
        return found

    def turns(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """Like `responses`, but with all that the template writes after an answer: what a reward model reads."""
        return [(*ids[:-1], *self._ending) for ids in self.responses(texts)]

    def beginning(self, text: str) -> tuple[int, ...]:
        """Token ids of an answer that is not at its end."""
        return self.response(text)[:-1] if text else ()

    def _after(self, anchor: str, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts as they are after another text, where tokens do not join them."""
        first = self._contents([anchor])[0] if anchor else []
        found = self._contents([anchor + text for text in texts])
        alone = [index for index, ids in enumerate(found) if ids[: len(first)] != first]
        for index, ids in zip(alone, self._contents([texts[index] for index in alone]), strict=True):
            found[index] = first + ids
        return [ids[len(first) :] for ids in found]

    def _contents(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts, in which special tokens spelled out stay text."""
        if not texts:
            return []
        ids: list[list[int]] = self.tokenizer(
            list(texts), add_special_tokens=False, split_special_tokens=True, return_attention_mask=False
        )["input_ids"]
        return ids

    def thought(self, text: str) -> str:
        """The block in which a model thinks, up to where its answer begins; all of the text if it does not end."""
        if self._closing is None:
            return ""
        answer = text.partition(self._closing)[2].lstrip()
        return text[: len(text) - len(answer)]

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of a sampled response, without the terminator and other special tokens."""
        return self.tokenizer.decode(list(token_ids), skip_special_tokens=True)


def load_tokenizer(model: str | Path) -> Any:
    """Load the tokenizer of a model folder or hub name.

    Raises:
        UserError: it cannot be loaded.
    """
    from transformers import AutoTokenizer

    modelfiles.require_folder(model)
    # transformers loses the chat template of a revision, so it gets a folder.
    folder = model if Path(model).is_dir() else hub.snapshot(hub.named(str(model)), None, weights=False)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        tokenizer("a")  # some damage shows in use only
        return tokenizer
    except Exception as error:  # transformers and its tokenizers raise anything for files that are not as they expect
        if modelfiles.find(model, "config.json"):
            modelfiles.load_config(model)  # the cause may be there
        raise UserError(
            f"{model}: no tokenizer can be opened ({modelfiles.reason(error)}); name a model folder that has a sound "
            "tokenizer.json and tokenizer_config.json"
        ) from error


def require_same_tokenizer(
    policy: Any, reference: Any, policy_name: str, reference_name: str, templates: bool = True
) -> None:
    """Check that two tokenizers are equal: a log-ratio of models with different tokens has no meaning.

    Args:
        templates: whether their chat templates are used, and must be equal as well.

    Raises:
        UserError: the vocabularies, the tokens of a probe text or the chat templates differ.
    """
    probe = "Grüße, мир! ¿Qué tal? 你好 สวัสดี  \n\tdef f(x): return x**2 # 0.1234"
    vocab, other = policy.get_vocab(), reference.get_vocab()
    if vocab != other:
        odd = sorted(set(vocab.items()) ^ set(other.items()))[0][0]
        why = f"their vocabularies differ, for example at the token {odd!r}"
    elif policy(probe)["input_ids"] != reference(probe)["input_ids"]:
        why = "they split the same text into different tokens"
    elif templates and policy.chat_template != reference.chat_template:
        why = "their chat templates differ: set model.chat_template to use one for both"
    else:
        return
    raise UserError(
        f"{policy_name} and {reference_name} do not share a tokenizer: {why}. The implicit reward compares "
        "log-probabilities token by token: use the model from which the aligned one was trained"
    )
