"""Prompts and answers have the token ids of the encoders that the makers of models publish."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import required
from xlr.chat.encoding import ChatEncoder
from xlr.records import Message

# As in the tokenizer_config.json of these models.
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + 'END' }}"
    "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)
VERSIONS = {
    "v1": ("tokenizer.model.v1", " [/INST]"),
    "v2": ("mistral_instruct_tokenizer_240216.model.v2", "[/INST]"),
    "v3": ("mistral_instruct_tokenizer_240323.model.v3", "[/INST]"),
    "v7": ("mistral_instruct_tokenizer_241114.model.v7", "[/INST]"),
}
QUICKSTART = Path(__file__).parents[2] / "xlr" / "recipes" / "quickstart" / "prompts"


def texts() -> Iterator[str]:
    """The shipped instructions, in all their languages, and a few odd ones."""
    yield from ("¿Qué tal?", "Hello\nworld", "你好，世界", "नमस्ते", "x", "1 + 1 = 2?", "🙂 {{ x }} <b>&amp;</b>")
    for file in sorted(QUICKSTART.glob("*.jsonl")):
        for line in file.read_text(encoding="utf-8").splitlines():
            yield json.loads(line)["instruction"]


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


@pytest.fixture(scope="module")
def mistral_files() -> Path:
    """The folder of Mistral's tokenizers."""
    return Path(required("mistral_common").__file__).parent / "data"


@pytest.mark.parametrize("version", VERSIONS)
def test_prompts_and_answers_of_mistral_are_those_of_its_makers(
    version: str, mistral_files: Path, tmp_path: Path
) -> None:
    """Its tokenizers, of the SentencePiece kind, have the space after a marker in the next word's first token."""
    from mistral_common.protocol.instruct.messages import AssistantMessage, UserMessage
    from mistral_common.protocol.instruct.request import ChatCompletionRequest
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
    from transformers import LlamaTokenizer

    file, end = VERSIONS[version]
    (tmp_path / "tokenizer.model").write_bytes((mistral_files / file).read_bytes())
    tokenizer = LlamaTokenizer.from_pretrained(tmp_path, legacy=True)
    tokenizer.chat_template = MISTRAL.replace("END", end)
    encoder, theirs = ChatEncoder(tokenizer, version), getattr(MistralTokenizer, version)()
    for text in texts():
        if "  " in text or "\n" in text:
            continue  # their SentencePiece model merges white space, which the one of transformers does not
        question, answer = UserMessage(content=text), AssistantMessage(content="Una respuesta.")
        prompt = theirs.encode_chat_completion(ChatCompletionRequest(messages=[question])).tokens
        assert list(encoder.prompt(text)) == prompt
        whole = ChatCompletionRequest(messages=[question, answer, UserMessage(content="?")])
        own = [*prompt, *encoder.response("Una respuesta.")]
        assert own == theirs.encode_chat_completion(whole).tokens[: len(own)]
