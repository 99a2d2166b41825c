"""Model folders that are damaged, incomplete or do not fit together are refused with one sentence and a remedy."""

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from xlr.chat.encoding import ChatEncoder, load_tokenizer
from xlr.errors import UserError
from xlr.foreign import modelfiles
from xlr.model.checks import generation_eos, positions, require_model

Break = Callable[[Path], None]


@pytest.fixture
def model(tiny_models: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_models["initial"], tmp_path / "model"))


def opened(folder: Path) -> None:
    """What a run checks of a model before it computes anything."""
    encoder = ChatEncoder(load_tokenizer(folder), str(folder))
    require_model(folder, encoder.tokenizer)
    positions(folder)


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as refused:
        opened(folder)
    said = str(refused.value)
    assert "\n" not in said
    assert str(folder.name) in said
    assert ";" in said, f"no remedy: {said}"
    return said


def edited(name: str, **values: Any) -> Break:
    def edit(folder: Path) -> None:
        file = folder / name
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return edit


def written(name: str, text: str | bytes) -> Break:
    return lambda folder: (folder / name).write_bytes(text.encode() if isinstance(text, str) else text) and None


def removed(*names: str) -> Break:
    def remove(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return remove


def pickled(folder: Path) -> None:
    removed("model.safetensors")(folder)
    torch.save({"x": torch.ones(1)}, folder / "pytorch_model.bin")


def sharded(*names: object) -> Break:
    """Weights with an index that names these files; the first one is the weights' own."""

    def shard(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "a.safetensors")
        index = {"weight_map": {f"weight {number}": name for number, name in enumerate(names)}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    return shard


def cut_off(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def circle(name: str) -> Break:
    def link(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to(folder / name)

    return link


def folder_in_place(name: str) -> Break:
    def make(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return make


CONFIG, GENERATION, TOKENIZER = "config.json", "generation_config.json", "tokenizer_config.json"
NO_CONFIG = "config.json: not a model that can be opened"
NO_TOKENIZER = "no tokenizer can be opened"
NO_EOS = "generation_config.json: eos_token_id .* is no token id of the model"
NO_GENERATION = "generation_config.json: not a generation config"
NO_JSON = "cannot be read as JSON"
BAD: list[tuple[Break, str]] = [
    (written(CONFIG, ""), f"config.json: {NO_JSON}"),
    (written(CONFIG, "{"), f"config.json: {NO_JSON}"),
    (written(CONFIG, "["), f"config.json: {NO_JSON}"),
    (written(CONFIG, "[]"), "config.json: holds no JSON object"),
    (written(CONFIG, "3"), "config.json: holds no JSON object"),
    (written(CONFIG, b"\xff\xfe"), f"config.json: {NO_JSON}"),
    (written(CONFIG, "[" * 100_000), f"config.json: {NO_JSON}"),
    (written(CONFIG, '{"vocab_size": ' + "9" * 5000 + "}"), f"config.json: {NO_JSON}"),
    (written(CONFIG, '{"a": 1, "a": 2}'), "a key stands twice"),
    (written(CONFIG, "{}"), NO_CONFIG),
    (removed(CONFIG), "has no config.json"),
    (circle(CONFIG), "config.json: not a file, or a symbolic link"),
    (folder_in_place(CONFIG), "config.json: not a file"),
    (edited(CONFIG, rms_norm_eps=math.nan), "NaN is no number"),
    (edited(CONFIG, hidden_size="x"), "config.json: .*'hidden_size' expected int"),
    (edited(CONFIG, num_attention_heads=0), NO_CONFIG),
    (edited(CONFIG, vocab_size=None), NO_CONFIG),
    (edited(CONFIG, max_position_embeddings=0), "max_position_embeddings in config.json is 0"),
    (edited(CONFIG, max_position_embeddings="x"), NO_CONFIG),
    (edited(CONFIG, rope_parameters="x"), NO_CONFIG),
    (edited(CONFIG, quantization_config=3), NO_CONFIG),
    (edited(CONFIG, model_type="unheard-of"), NO_CONFIG),
    (edited(CONFIG, model_type="own", auto_map={"AutoConfig": "code.Config"}), "names code of its own"),
    (edited(CONFIG, vocab_size=599), "the tokenizer has the token .* with the id 599, but the model knows only"),
    (edited(CONFIG, vocab_size=-1), "but the model knows only ids below -1"),
    (written(GENERATION, "{"), f"generation_config.json: {NO_JSON}"),
    (written(GENERATION, "[]"), "generation_config.json: holds no JSON object"),
    (circle(GENERATION), "generation_config.json: not a file"),
    (edited(GENERATION, eos_token_id="x"), NO_EOS),
    (edited(GENERATION, eos_token_id=True), NO_EOS),
    (edited(GENERATION, eos_token_id=1.0), NO_EOS),
    (edited(GENERATION, eos_token_id={"a": 1}), NO_EOS),
    (edited(GENERATION, eos_token_id=-1), NO_EOS),
    (edited(GENERATION, eos_token_id=600), NO_EOS),
    (edited(GENERATION, eos_token_id=[1, "x"]), NO_EOS),
    (edited(GENERATION, max_new_tokens=-5), NO_GENERATION),
    (edited(GENERATION, watermarking_config=3), NO_GENERATION),
    (edited(GENERATION, temperature=0.6), NO_GENERATION),  # without do_sample, it cannot be saved with a trained model
    (removed("tokenizer.json"), NO_TOKENIZER),
    (written("tokenizer.json", ""), NO_TOKENIZER),
    (written("tokenizer.json", "{}"), NO_TOKENIZER),
    (edited("tokenizer.json", model=5), NO_TOKENIZER),
    (edited("tokenizer.json", added_tokens=[{"id": "x"}]), NO_TOKENIZER),
    (written(TOKENIZER, "{"), NO_TOKENIZER),
    (written(TOKENIZER, "[]"), NO_TOKENIZER),
    (edited(TOKENIZER, tokenizer_class=5), NO_TOKENIZER),
    (edited(TOKENIZER, bos_token=5), NO_TOKENIZER),
    (edited(TOKENIZER, model_max_length="x"), NO_TOKENIZER),
    (edited(TOKENIZER, eos_token="<new>"), "the tokenizer has the token '<new>' with the id 600"),
    (edited(TOKENIZER, added_tokens_decoder={"x": 5}), NO_TOKENIZER),
    (edited(TOKENIZER, padding_side="up"), NO_TOKENIZER),
    (written("chat_template.jinja", b"\xff"), NO_TOKENIZER),
    (written("chat_template.jinja", "{% for"), "the chat template does not accept messages"),
    (removed("chat_template.jinja"), "has no chat template"),
    (written("adapter_config.json", "{}"), "holds an adapter"),
    (removed("model.safetensors"), "holds no model.safetensors"),
    (pickled, r"holds pickled weights only \(pytorch_model.bin\)"),
    (cut_off, "model.safetensors: missing, damaged or cut off"),
    (written("model.safetensors", b""), "model.safetensors: missing, damaged or cut off"),
    (written("model.safetensors", b"\xff" * 100), "model.safetensors: missing, damaged or cut off"),
    (written("model.safetensors", b"\x02" + bytes(7) + b"{}"), "model.safetensors: holds no weights"),
    (sharded("a.safetensors", "b.safetensors"), "b.safetensors: missing, damaged or cut off"),
    (sharded("a.safetensors", "../b.safetensors"), "names '../b.safetensors', which is no file of the folder"),
    (sharded("a.safetensors", 5), "names '5', which is no file of the folder"),
    (sharded(), "holds no weight_map"),
]


@pytest.mark.parametrize(("damage", "message"), BAD, ids=[str(number) for number in range(len(BAD))])
def test_a_bad_model_folder_is_refused(damage: Break, message: str, model: Path) -> None:
    damage(model)
    said = refusal(model)
    assert re.search(message, said), said


def test_sound_folders_pass(model: Path) -> None:
    opened(model)
    removed(GENERATION)(model)
    opened(model)
    assert generation_eos(model) == []
    sharded("a.safetensors")(model)
    opened(model)


def test_what_is_no_folder_is_said_to_be_missing_or_something_else(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    assert "file: a file; name the folder" in refusal(tmp_path / "file")
    assert "circle: a symbolic link that leads nowhere" in refusal(tmp_path / "circle")
    assert "nowhere: no such folder" in refusal(tmp_path / "nowhere")
    for name in ("./nowhere", "some/where/else"):
        with pytest.raises(UserError, match=f"{name}: no such folder"):
            modelfiles.require_folder(name)
    modelfiles.require_folder("HuggingFaceTB/SmolLM2-135M-Instruct")


def test_end_tokens_of_the_generation_config(model: Path) -> None:
    for given_ids, found in ((None, []), (3, [3]), ([3, 599], [3, 599])):
        edited(GENERATION, eos_token_id=given_ids)(model)
        assert generation_eos(model) == found


def test_positions_count_what_rope_scaling_adds(model: Path) -> None:
    assert positions(model) == 1024
    rope = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 1024}
    edited(CONFIG, rope_parameters=rope)(model)
    assert positions(model) == 4096


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
# Keys that code reads, with any value.
KEYS = {
    GENERATION: ["eos_token_id", "pad_token_id", "temperature", "do_sample", "max_new_tokens", "cache_implementation"],
    TOKENIZER: ["eos_token", "bos_token", "pad_token", "model_max_length", "tokenizer_class", "extra_special_tokens"],
    CONFIG: [
        "vocab_size",
        "hidden_size",
        "max_position_embeddings",
        "rope_parameters",
        "model_type",
        "dtype",
        "auto_map",
    ],
}
PLACES = [(name, key) for name, keys in KEYS.items() for key in keys]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.sampled_from(PLACES), value=JSON)
def test_any_value_is_taken_or_refused_with_one_line(place: tuple[str, str], value: object, model: Path) -> None:
    name, key = place
    before = (model / name).read_bytes()
    edited(name, **{key: value})(model)
    said = str(model)
    try:
        opened(model)
    except UserError as error:
        said = str(error)
    finally:
        (model / name).write_bytes(before)
    assert "\n" not in said
    assert str(model) in said
