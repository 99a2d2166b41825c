import copy
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tests import tiny
from xlr.chat import encoding
from xlr.chat.encoding import ChatEncoder, load_tokenizer, require_same_tokenizer
from xlr.errors import UserError
from xlr.records import Example

FAMILIES = list(tiny.FAMILIES)
WITH_BOS = ["llama3", "gemma"]
TEXTS = [
    "Hello, world!",
    "¿Por qué cambian de color las hojas en otoño?",
    "Warum ist der Himmel blau?\n\n1. Größe\n2. Straße\n",
    "Сегодня хорошая погода.",
    "今天天气很好。 สวัสดี 🙂",
    "don 't ,  keep   these . spaces ",
    "",
]
SPELLED = "".join(f"{bos}{eos}{''.join(others)}" for _, bos, eos, others, _ in tiny.FAMILIES.values())
moderate = settings(max_examples=40, deadline=None)


@cache
def encoder(family: str) -> ChatEncoder:
    return ChatEncoder(tiny.make_tokenizer(family), family)


def with_template(family: str, template: str | None):
    tokenizer = copy.deepcopy(encoder(family).tokenizer)
    tokenizer.chat_template = template
    return tokenizer


def token_id(family: str, token: str) -> int:
    return encoder(family).tokenizer.convert_tokens_to_ids(token)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_terminator_is_the_token_that_the_template_puts_after_an_answer(family):
    assert encoder(family).terminator_id == token_id(family, tiny.TERMINATORS[family])


def test_the_terminator_of_llama3_and_gemma_is_not_their_eos():
    for family in WITH_BOS:
        assert encoder(family).terminator_id != encoder(family).tokenizer.eos_token_id


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("family", WITH_BOS)
def test_a_prompt_begins_with_its_only_bos(family, text):
    ids = encoder(family).prompt(text)
    bos = token_id(family, tiny.FAMILIES[family][1])
    assert ids[0] == bos
    assert ids.count(bos) == 1


@pytest.mark.parametrize("text", TEXTS)
def test_a_prompt_of_a_model_without_bos_begins_with_its_turn_marker(text):
    ids = encoder("qwen").prompt(text)
    assert ids[0] == token_id("qwen", "<|im_start|>")
    assert ids.count(token_id("qwen", "<|im_start|>")) == 2


@pytest.mark.parametrize("family", WITH_BOS)
def test_a_bos_spelled_out_in_an_instruction_is_not_a_second_bos(family):
    spelled = tiny.FAMILIES[family][1]
    ids = encoder(family).prompt(f"What does {spelled} mean?")
    assert ids.count(token_id(family, spelled)) == 1


@pytest.mark.parametrize("family", WITH_BOS)
def test_a_bos_that_only_the_tokenizer_adds_is_added_once(family):
    bare = ChatEncoder(with_template(family, tiny.FAMILIES[family][0].replace("{{ bos_token }}", "")), family)
    assert bare.prompt("Hello") == encoder(family).prompt("Hello")


@pytest.mark.parametrize("family", WITH_BOS)
def test_a_bos_that_only_the_template_writes_is_kept_once(family):
    tokenizer = copy.deepcopy(encoder(family).tokenizer)
    tokenizer.backend_tokenizer.post_processor = tiny.processors.ByteLevel(trim_offsets=False)
    assert tokenizer("Hello")["input_ids"][0] != tokenizer.bos_token_id
    assert ChatEncoder(tokenizer, family).prompt("Hello") == encoder(family).prompt("Hello")


@pytest.mark.parametrize("family", WITH_BOS)
def test_a_template_that_doubles_the_bos_is_refused(family):
    with pytest.raises(UserError, match="two BOS"):
        ChatEncoder(with_template(family, "{{ bos_token }}" + tiny.FAMILIES[family][0]), family)


@pytest.mark.parametrize("text", [*TEXTS, SPELLED, *tiny.TERMINATORS.values()])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_terminator_at_the_end_is_the_only_special_token_of_a_response(family, text):
    ids = encoder(family).response(text)
    special = set(encoder(family).tokenizer.all_special_ids)
    assert [index for index, token in enumerate(ids) if token in special] == [len(ids) - 1]
    assert ids[-1] == encoder(family).terminator_id


@pytest.mark.parametrize("text", [*TEXTS, SPELLED])
@pytest.mark.parametrize("family", FAMILIES)
def test_decoding_a_response_returns_its_text(family, text):
    ids = list(encoder(family).response(text))
    assert encoder(family).decode(ids[:-1]) == text
    assert encoder(family).decode(ids) == text


@moderate
@given(st.sampled_from(FAMILIES), st.text(max_size=30))
def test_decoding_a_response_returns_any_text(family, text):
    ids = encoder(family).response(text)
    assert encoder(family).decode(list(ids[:-1])) == text


def whole_conversation(family: str, instruction: str, answer: str) -> list[int]:
    """Tokens of the rendered conversation, up to and including the terminator of the answer."""
    messages = [{"role": "user", "content": instruction}, {"role": "assistant", "content": answer}]
    text = encoder(family).tokenizer.apply_chat_template(messages, tokenize=False)
    ids = encoder(family).tokenizer(text, add_special_tokens=False)["input_ids"]
    while ids[-1] != token_id(family, tiny.TERMINATORS[family]):
        ids.pop()
    return ids


@pytest.mark.parametrize("answer", TEXTS)
@pytest.mark.parametrize("instruction", TEXTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_prompt_and_response_are_the_tokens_of_the_whole_conversation(family, instruction, answer):
    joined = [*encoder(family).prompt(instruction), *encoder(family).response(answer)]
    assert joined == whole_conversation(family, instruction, answer)


@pytest.mark.parametrize("family", FAMILIES)
def test_many_answers_are_encoded_like_single_ones(family):
    texts = [f"{number} {text}" for number in range(300) for text in (*TEXTS, tiny.TERMINATORS[family])] + [""]
    assert len(texts) > 2 * encoding._TEXTS_AT_ONCE
    assert encoder(family).responses(texts) == [encoder(family).response(text) for text in texts]
    assert encoder(family).responses([]) == []


# Text without special tokens. An answer must also not begin with white space, which would merge with the template's.
PLAIN = st.text(max_size=20).filter(lambda text: "<" not in text)


@moderate
@given(st.sampled_from(FAMILIES), PLAIN, PLAIN.map(str.lstrip))
def test_prompt_and_response_of_any_text_are_the_tokens_of_the_whole_conversation(family, instruction, answer):
    joined = [*encoder(family).prompt(instruction), *encoder(family).response(answer)]
    assert joined == whole_conversation(family, instruction, answer)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_longer_conversation_continues_its_first_turns(family):
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "¿Qué tal?"},
    ]
    ids = encoder(family).prompt_of(messages)
    first_turns = encoder(family).prompt("Hi") + encoder(family).response("Hello")
    assert ids[: len(first_turns)] == first_turns
    assert ids.count(encoder(family).terminator_id) == len(messages)


@pytest.mark.parametrize("template", [None, ""])
def test_a_tokenizer_without_chat_template_is_refused(template):
    with pytest.raises(UserError, match="some/model: the tokenizer has no chat template"):
        ChatEncoder(with_template("qwen", template), "some/model")


def test_a_template_whose_answers_do_not_follow_its_generation_prompt_is_refused():
    thinking = tiny.CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
    with pytest.raises(UserError, match="generation prompt"):
        ChatEncoder(with_template("qwen", thinking), "some/model")


PLAIN_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_template_without_end_of_turn_token_falls_back_to_eos(family):
    tokenizer = with_template(family, PLAIN_TEMPLATE)
    assert ChatEncoder(tokenizer, family).terminator_id == tokenizer.eos_token_id


def test_neither_end_of_turn_token_nor_eos_is_refused():
    tokenizer = with_template("qwen", PLAIN_TEMPLATE)
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="end-of-turn"):
        ChatEncoder(tokenizer, "some/model")


@pytest.mark.parametrize("family", FAMILIES)
def test_stop_ids_are_terminator_and_eos_and_the_models_own_without_duplicates(family):
    terminator, eos = encoder(family).terminator_id, encoder(family).tokenizer.eos_token_id
    assert encoder(family).stop_ids([]) == list(dict.fromkeys([terminator, eos]))
    for generation_eos, extra in [([eos], []), ([99], [99]), ([terminator, 99, eos, 98, 99], [99, 98]), ([], [])]:
        stop_ids = encoder(family).stop_ids(generation_eos)
        assert sorted(stop_ids) == sorted({terminator, eos, *extra})


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_tokenizer_encodes_the_same(family, tmp_path: Path):
    encoder(family).tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    require_same_tokenizer(encoder(family).tokenizer, loaded, "policy", "reference")
    reopened = ChatEncoder(loaded, family)
    for text in TEXTS:
        assert reopened.prompt(text) == encoder(family).prompt(text)
        assert reopened.response(text) == encoder(family).response(text)


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_share_one_object_for_each_id(family):
    first, second = (encoder(family).response("Why do leaves change colour in autumn?") for _ in range(2))
    assert max(first) > 256  # Python always shares int objects up to 256
    assert all(left is right for left, right in zip(first, second, strict=True))


def test_a_folder_without_tokenizer_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="no tokenizer can be opened"):
        load_tokenizer(tmp_path)


def test_models_with_different_vocabularies_do_not_share_a_tokenizer():
    with pytest.raises(UserError, match=r"aligned and initial .* vocabularies differ"):
        require_same_tokenizer(encoder("qwen").tokenizer, encoder("llama3").tokenizer, "aligned", "initial")


def test_one_additional_token_makes_a_different_vocabulary():
    longer = copy.deepcopy(encoder("qwen").tokenizer)
    longer.add_tokens(["xlr-extra"])
    with pytest.raises(UserError, match="xlr-extra"):
        require_same_tokenizer(encoder("qwen").tokenizer, longer, "aligned", "initial")


def test_models_that_split_text_differently_do_not_share_a_tokenizer():
    other = copy.deepcopy(encoder("llama3").tokenizer)
    other.backend_tokenizer.post_processor = tiny.processors.ByteLevel(trim_offsets=False)
    with pytest.raises(UserError, match="different tokens"):
        require_same_tokenizer(encoder("llama3").tokenizer, other, "aligned", "initial")


def test_models_with_different_templates_do_not_share_a_tokenizer():
    other = with_template("qwen", PLAIN_TEMPLATE)
    with pytest.raises(UserError, match="chat templates differ"):
        require_same_tokenizer(encoder("qwen").tokenizer, other, "aligned", "initial")


@pytest.mark.parametrize("family", FAMILIES)
def test_equal_tokenizers_are_accepted(family):
    tokenizer = encoder(family).tokenizer
    require_same_tokenizer(tokenizer, copy.deepcopy(tokenizer), "aligned", "initial")


def test_num_tokens_counts_the_prompt_once_and_responses_without_terminator():
    assert Example((1, 2, 3), ((4, 5, 9), (9,), (6, 9))).num_tokens == 3 + 2 + 0 + 1


def sentencepiece(template: str) -> PreTrainedTokenizerFast:
    """A tokenizer that puts a space before the first word of a text, as those of Llama 2 and Mistral do."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<unk>", "<s>", "</s>"], initial_alphabet=list("abcdefghijklmnopqrstuvwxyz\n▁")
    )
    tokenizer.train_from_iterator([f"{text} xlr probe the answer" for text in TEXTS[:2]] * 20, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    fast.chat_template = template
    return fast


@pytest.mark.parametrize("between", ["\n", " ", " says:\n"])
def test_the_first_token_of_an_answer_has_a_space_only_where_the_template_writes_one(between: str) -> None:
    template = (
        "{% for m in messages %}{{ m.role ~ ':' if m.role == 'user' else m.role ~ BETWEEN }}{{ m.content }}"
        "{{ eos_token }}{% endfor %}{% if add_generation_prompt %}assistantEND{% endif %}"
    )
    # After "\n" the template itself ends the generation prompt there; a space belongs to the answer's first token.
    end = between if between != " " else ""
    template = template.replace("BETWEEN", repr(between).replace("'", '"')).replace("END", end)
    tokenizer = sentencepiece(template)
    own = ChatEncoder(tokenizer, "sentencepiece")
    for answer in ("the answer", "x", "answer the"):
        whole = tokenizer.apply_chat_template(
            [{"role": "user", "content": "hello"}, {"role": "assistant", "content": answer}],
            tokenize=True,
            return_dict=False,
        )
        assert [*own.prompt("hello"), *own.response(answer)] == whole
        assert own.decode(list(own.response(answer))) == answer
    assert own.response("") == (own.terminator_id,)
