"""Prompts and answers of Mistral have the token ids of its own encoder.

Run by `make test-vllm`: vLLM brings the package mistral-common, which needs another version of numpy than xlr's tests.
"""

from pathlib import Path

import pytest

from tests.chat.texts import texts
from tests.conftest import required
from xlr.chat.encoding import ChatEncoder

# As in the tokenizer_config.json of these models.
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
