"""Checkpoints that hold more than data are refused, and nothing in them is executed."""

import contextlib
import io
import operator
import os
import pickle
import subprocess
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from xlr.errors import UserError
from xlr.zero import pickles


class Trusted:
    """A class that checkpoints may hold."""


class Calls:
    """Pickles as a call of a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any):
        self._call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self._call


@pytest.fixture(autouse=True)
def _forbidden() -> None:
    pickles.forbid_code([Trusted])


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "executed"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "step" / "state").mkdir(parents=True)
    return tmp_path / "step"


def attacks(marker: Path) -> dict[str, Calls]:
    """What is called -> an object whose pickle creates the marker when it is opened."""
    code = f"open({str(marker)!r}, 'w')"
    inner = io.BytesIO()
    torch.save(Calls(os.system, f"touch {marker}"), inner)
    return {
        "posix.system": Calls(os.system, f"touch {marker}"),
        "builtins.eval": Calls(eval, code),
        "builtins.exec": Calls(exec, code),
        "io.open": Calls(open, str(marker), "w"),
        "Popen": Calls(subprocess.Popen, ["touch", str(marker)]),
        "pickle.loads": Calls(pickle.loads, pickle.dumps(Calls(os.system, f"touch {marker}"))),
        "torch.serialization.load": Calls(torch.load, io.BytesIO(inner.getvalue())),
        "torch.storage._load_from_bytes": Calls(torch.storage._load_from_bytes, inner.getvalue()),
        "torch._utils._import_dotted_name": Calls(torch._utils._import_dotted_name, "os.system"),
        "operator.methodcaller": Calls(operator.methodcaller, "touch"),
        "builtins.getattr": Calls(getattr, marker, "touch"),
    }


NESTINGS: dict[str, Callable[[Any], Any]] = {
    "alone": lambda value: value,
    "in a list": lambda value: {"module": [1, "two", [value]]},
    "in an OrderedDict": lambda value: OrderedDict(a=torch.ones(2), b=OrderedDict(c=value)),
    "as a key": lambda value: {value: 1},
    "as the state of a trusted object": lambda value: with_state(value),
    "as an attribute of a tensor": lambda value: with_attribute(value),
}


def with_state(value: Any) -> Trusted:
    trusted = Trusted()
    trusted.__dict__["scale"] = value
    return trusted


def with_attribute(value: Any) -> torch.Tensor:
    tensor = torch.ones(2)
    tensor.note = value  # type: ignore[attr-defined]
    return tensor


def refused(folder: Path, marker: Path, file: Path) -> str:
    """The message with which a checkpoint is refused. Asserts that neither the check nor `torch.load` executes it."""
    with pytest.raises(UserError) as refusal:
        pickles.require_data(folder)
    with pytest.raises(Exception, match=r"[\s\S]"):
        torch.load(file, weights_only=False)  # as DeepSpeed does
    assert not marker.exists()
    assert str(refusal.value).startswith(f"{file}: ")
    assert f"delete {folder} and start again" in str(refusal.value)
    return str(refusal.value)


@pytest.mark.parametrize("nesting", NESTINGS)
def test_a_call_is_refused_by_name_and_never_made(nesting: str, folder: Path, marker: Path) -> None:
    file = folder / "state" / "mp_rank_00_model_states.pt"
    for name, attack in attacks(marker).items():
        torch.save(NESTINGS[nesting](attack), file)
        message = refused(folder, marker, file)
        assert name in message
        assert "would execute code" in message


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_protocol_of_pickle_is_refused(protocol: int, folder: Path, marker: Path) -> None:
    file = folder / "state" / "zero_pp_rank_0_mp_rank_00_optim_states.pt"
    torch.save({"a": Calls(os.system, f"touch {marker}")}, file, pickle_protocol=protocol)
    refused(folder, marker, file)


def legacy(attack: Any, file: Path) -> None:
    torch.save(attack, file, _use_new_zipfile_serialization=False)


def plain(attack: Any, file: Path) -> None:
    file.write_bytes(pickle.dumps(attack))


def tar(attack: Any, file: Path) -> None:
    with tarfile.open(file, "w") as archive:
        for name in ("storages", "tensors", "pickle"):
            data = pickle.dumps(attack)
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


def script(attack: Any, file: Path) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/constants.pkl", pickle.dumps(attack))
        archive.writestr("archive/data.pkl", pickle.dumps(attack))


def two_entries(attack: Any, file: Path) -> None:
    torch.save({"a": 1}, file)
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(f"{file.stem}/data.pkl", pickle.dumps(attack, protocol=2))


@pytest.mark.parametrize("write", [legacy, plain, tar, script])
def test_other_formats_are_refused(write: Callable[[Any, Path], None], folder: Path, marker: Path) -> None:
    file = folder / "state" / "x_optim_states.pt"
    write(Calls(os.system, f"touch {marker}"), file)
    refused(folder, marker, file)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_archive_with_two_pickles_executes_none(folder: Path, marker: Path) -> None:
    file = folder / "state" / "x_optim_states.pt"
    two_entries(Calls(os.system, f"touch {marker}"), file)
    for read in (lambda: pickles.require_data(folder), lambda: torch.load(file, weights_only=False)):
        with contextlib.suppress(UserError, pickle.UnpicklingError, RuntimeError):
            read()
        assert not marker.exists()


@pytest.mark.parametrize("name", ["../../elsewhere", "..", "/etc/x", "a\0b"])
def test_names_that_lead_to_another_folder_are_refused(name: str, folder: Path) -> None:
    torch.save({"state": [{name: torch.ones(1)}]}, folder / "state" / "x.pt")
    with pytest.raises(UserError, match="would lead to another folder"):
        pickles.require_data(folder)


def test_links_and_special_files_are_refused(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.pt"
    torch.save({}, other)
    link = folder / "state" / "link.pt"
    for make in (lambda: link.symlink_to(other), lambda: link.symlink_to(tmp_path), lambda: os.mkfifo(link)):
        make()
        with pytest.raises(UserError, match="is a link or a special file"):
            pickles.require_data(folder)
        link.unlink()


def content() -> dict[str, Any]:
    """What real checkpoints hold."""
    return {
        "module": OrderedDict(w=torch.ones(3, dtype=torch.bfloat16), b=torch.nn.Parameter(torch.ones(2))),
        "lr_scheduler": {"base_lrs": [1e-3], "lr_lambdas": [{}]},
        "loss_scaler": with_state(1.0),
        "shape": torch.Size([2, 3]),
    }


def test_data_passes(folder: Path) -> None:
    torch.save(content(), folder / "state" / "x.pt")
    (folder / "latest").write_text("state")
    (folder / "zero_to_fp32.py").write_text("raise SystemExit")
    pickles.require_data(folder)
    assert torch.load(folder / "state" / "x.pt", weights_only=False)["loss_scaler"].scale == 1.0


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_file_is_refused_or_read_as_data(data: st.DataObject, folder: Path) -> None:
    file = folder / "state" / "x.pt"
    torch.save(content(), file)
    raw = bytearray(file.read_bytes())
    if data.draw(st.booleans()):
        del raw[data.draw(st.integers(0, len(raw) - 1)) :]
    for place in data.draw(st.lists(st.integers(0, max(0, len(raw) - 1)), max_size=4)):
        if raw:
            raw[place] = data.draw(st.integers(0, 255))
    file.write_bytes(raw)
    with contextlib.suppress(UserError):
        pickles.require_data(folder)


def test_a_changed_byte_is_noticed_or_changes_nothing(folder: Path) -> None:
    """At every 7th position: torch.load itself does not compare the checksums of tensors."""
    file = folder / "state" / "x.pt"
    whole = {"weights": torch.arange(64, dtype=torch.float32), "step": 3}
    torch.save(whole, file)
    raw = file.read_bytes()
    noticed = 0
    for place in range(0, len(raw), 7):
        file.write_bytes(raw[:place] + bytes([raw[place] ^ 8]) + raw[place + 1 :])
        try:
            pickles.require_data(folder)
            pickles.require_intact(folder, 0, 1)
        except UserError:
            noticed += 1
            continue
        read = torch.load(file, weights_only=True)
        assert torch.equal(read["weights"], whole["weights"])
        assert read["step"] == 3
    assert noticed > 20
