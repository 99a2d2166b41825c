"""Prompts and answers of Llama 3 have the token ids of Meta's own encoder."""

from pathlib import Path
from typing import Any

import pytest

from tests.chat.texts import texts
from tests.conftest import required
from xlr.chat.encoding import ChatEncoder
from xlr.records import Message

# As in the tokenizer_config.json of these models.
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)


@pytest.fixture(scope="module")
def llama3() -> tuple[ChatEncoder, Any, Any]:
    """Llama 3's tokenizer through xlr, and Meta's encoder of conversations with the type of its messages."""
    file = Path(required("llama_models").__file__).parent / "llama3" / "tokenizer.model"
    from llama_models.datatypes import RawMessage
    from llama_models.llama3.chat_format import ChatFormat
    from llama_models.llama3.tokenizer import Tokenizer
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import TikTokenConverter

    theirs = Tokenizer.get_instance()
    specials = sorted(theirs.special_tokens, key=theirs.special_tokens.__getitem__)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=TikTokenConverter(str(file), extra_special_tokens=specials).converted(),
        bos_token="<|begin_of_text|>",
        eos_token="<|end_of_text|>",
    )
    fast.chat_template = LLAMA3
    return ChatEncoder(fast, "llama3"), ChatFormat(theirs), RawMessage


def test_prompts_and_answers_of_llama3_are_those_of_its_makers(llama3: tuple[ChatEncoder, Any, Any]) -> None:
    encoder, theirs, message = llama3
    for text in texts():
        assert list(encoder.prompt(text)) == theirs.encode_dialog_prompt([message(role="user", content=text)]).tokens
        # Their dialogue ends with the header of the next answer.
        dialogue = [message(role="user", content=text), message(role="assistant", content="Una respuesta.")]
        whole = theirs.encode_dialog_prompt(dialogue).tokens
        own = [*encoder.prompt(text), *encoder.response("Una respuesta.")]
        assert own == whole[: len(own)]


def test_conversations_of_llama3_are_those_of_its_makers(llama3: tuple[ChatEncoder, Any, Any]) -> None:
    encoder, theirs, message = llama3
    turns: list[Message] = [
        {"role": "system", "content": "Responde en español."},
        {"role": "user", "content": "Hola"},
        {"role": "assistant", "content": "¡Hola!"},
        {"role": "user", "content": "¿Y ahora?"},
    ]
    expected = theirs.encode_dialog_prompt([message(**turn) for turn in turns]).tokens
    assert list(encoder.prompt_of(turns)) == expected
