"""A training whose memory runs out starts again with smaller micro-batches, and ends with the same gradients."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from tests import tiny
from tests.conftest import RANKS
from xlr.run.files import read_json
from xlr.shipped import RECIPES
from xlr.zero import fitting, halving

ROOM = """
import os

def _limit(most):
    import torch
    from xlr.training.step import Trainer
    step, logps = Trainer.step, Trainer.logps
    def refusing(self, examples, engine=None):
        tokens = sum(example.num_tokens for example in examples)
        if tokens > most:
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {tokens} bytes. GPU 0 has none left")
        return logps(self, examples, engine)
    def limited(self, micro_steps):
        Trainer.logps = refusing
        return step(self, micro_steps)
    Trainer.step = limited

if os.environ.get("RANK") == os.environ["XLR_ROOM_RANK"]:
    import importlib.abc, sys
    class Finder(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path, target=None):
            if name != "xlr.training.loop":
                return None
            sys.meta_path.remove(self)
            _limit(int(os.environ["XLR_ROOM"]))
            return None
    sys.meta_path.insert(0, Finder())
"""
"""Put before the ranks' modules as sitecustomize: from its first step on, one rank has memory for so many tokens."""


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model."""
    folder = tmp_path_factory.mktemp("wide")
    tokenizer = tiny.make_tokenizer("qwen")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def align(wide: Path, folder: Path, room: int | None, ranks: int, limited: int = 0, tokens: int | str = 3200) -> Any:
    """`xlr align` on real preferences, in which one rank has memory for so many tokens in its steps."""
    folder.mkdir()
    lines = (RECIPES / "quickstart" / "preferences.jsonl").read_text(encoding="utf-8").splitlines(True)
    (folder / "preferences.jsonl").write_text("".join(lines[:32]), encoding="utf-8")
    tree = {
        "run_dir": str(folder / "run"),
        "iterations": 1,
        "languages": ["en"],
        "model": {"initial": str(wide)},
        "prompts": {"path": str(RECIPES / "quickstart" / "prompts"), "limit": 2},
        "align": {
            "preferences": str(folder / "preferences.jsonl"),
            "learning_rate": 1e-4,
            "global_batch_size": 16,
            "micro_batch_tokens": tokens,
            "ds_config": "zero3_cpu",
            "reference_ds_config": "reference_cpu",
            "processes": ranks,
            "save_steps": 0,
        },
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if name not in RANKS}
    if room is not None:
        (folder / "site").mkdir()
        (folder / "site" / "sitecustomize.py").write_text(ROOM, encoding="utf-8")
        environment |= {"PYTHONPATH": f"{folder}/site:{Path(__file__).parents[2]}"}
        environment |= {"XLR_ROOM": str(room), "XLR_ROOM_RANK": str(limited)}
    command = [sys.executable, "-m", "xlr", "align", str(folder / "run.yaml")]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def free(wide: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The weights of a training with enough memory."""
    folder = tmp_path_factory.mktemp("free") / "align"
    assert align(wide, folder, None, ranks=1).returncode == 0
    return weights(folder)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "run" / "iter0" / "model" / "model.safetensors")


@pytest.mark.parametrize(("ranks", "limited", "tokens"), [(1, 0, 3200), (2, 1, "auto")])
def test_micro_batches_are_halved_until_they_fit(
    ranks: int, limited: int, tokens: int | str, wide: Path, free: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    """The allocator of one rank refuses. With two ranks both start again. A size that xlr chose is halved, too."""
    short = tmp_path / "short"
    found = align(wide, short, 500, ranks, limited, tokens)
    log = (short / "run" / "logs" / "align-0.log").read_text(encoding="utf-8", errors="replace")
    assert found.returncode == 0, found.stdout + found.stderr + log
    assert "memory ran out: all ranks start again with smaller micro-batches" in found.stdout
    used = read_json(short / "run" / halving.FILE)["align"]
    again = rf"out of memory in step [12] with align\.micro_batch_tokens=\d+ \(.* bytes\); all ranks .* with {used}"
    assert re.search(again, log), log
    warnings = read_json(short / "run" / "iter0" / "model.manifest.json")["facts"]["warnings"]
    chosen = 16384 if tokens == "auto" else tokens
    assert warnings[0] == f"memory ran out with align.micro_batch_tokens={chosen}; {used} were used instead"
    if tokens == "auto":
        assert found.stdout.count("micro-batches of 16,384 tokens fit the") == 1
        assert list(read_json(short / "run" / fitting.FILE).values()) == [chosen]
    for name, weight in weights(short).items():
        torch.testing.assert_close(weight, free[name], rtol=0, atol=2e-5)


def test_a_pair_that_does_not_fit_alone_ends_with_what_to_do(wide: Path, tmp_path: Path) -> None:
    found = align(wide, tmp_path / "none", 20, ranks=1)
    assert found.returncode == 2, found.stdout + found.stderr
    assert "align: out of memory with a single pair at a time" in found.stderr
    assert "set align.gradient_checkpointing, or align.reference_mode=cached" in found.stderr


def test_the_smaller_size_is_kept_for_its_stage_and_never_exceeds_the_settings(tmp_path: Path) -> None:
    assert halving.tokens(tmp_path, "train", 8192) == 8192
    assert halving.halve(tmp_path, "train", 8192) == 4096
    assert halving.tokens(tmp_path, "train", 8192) == 4096
    assert halving.tokens(tmp_path, "train", 1000) == 1000
    assert halving.tokens(tmp_path, "align", 8192) == 8192
    assert halving.halve(tmp_path, "align", 1) == 1


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    assert halving.is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(RuntimeError) as found:
        torch.empty(10**15)
    assert halving.is_out_of_memory(found.value)
    assert not halving.is_out_of_memory(RuntimeError("expected scalar type Float"))
