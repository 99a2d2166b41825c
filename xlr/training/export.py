"""Writes the trained model as a Hugging Face folder, shard by shard, and reads it back to check it."""

import hashlib
import socket
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file

from xlr.model.weights import refuse_damaged
from xlr.run.files import atomic_path, write_json
from xlr.zero.engine import gathered

SHARD_BYTES = 4_500_000_000
_VISIBLE_SECONDS = 120


def export(engine: Any, source: str, target: Path, card: str, chat_template: str | None = None) -> None:
    """Write a Hugging Face folder: sharded safetensors, configuration, tokenizer. Rank 0 holds at most one shard.

    Args:
        source: the model that training started from. Its tokenizer is copied.
        card: text of the folder's README.md.
        chat_template: the template that the model was trained with; None if it is that of the tokenizer.
    """
    sizes = {
        name: getattr(parameter, "ds_numel", parameter.numel()) * parameter.element_size()
        for name, parameter in engine.module.causal_lm.named_parameters()
    }
    shard_of = _shards(sizes)
    if dist.get_rank() == 0:
        _write_model(engine, source, target, card, chat_template, sizes, shard_of)
    else:
        for _ in gathered(engine):
            pass
    dist.barrier()
    _wait_until_visible(target / "config.json")


def _wait_until_visible(file: Path) -> None:
    """Wait until this node sees a file of rank 0: network file systems cache a folder's content for some seconds.

    Raises:
        OSError: it does not appear: the nodes do not share the run directory.
    """
    deadline = time.monotonic() + _VISIBLE_SECONDS
    while not file.is_file():
        if time.monotonic() > deadline:
            raise OSError(
                f"{file}: rank 0 wrote it, but rank {dist.get_rank()} on {socket.gethostname()} does not see it: put "
                "the run directory on a file system that all nodes share"
            )
        time.sleep(1)


def _write_model(
    engine: Any,
    source: str,
    target: Path,
    card: str,
    chat_template: str | None,
    sizes: dict[str, int],
    shard_of: dict[str, str],
) -> None:
    with atomic_path(target) as folder:
        folder.mkdir(parents=True)
        tensors: dict[str, torch.Tensor] = {}
        digests: dict[str, str] = {}
        file = next(iter(shard_of.values()))
        for name, parameter in gathered(engine):
            if shard_of[name] != file:
                save_file(tensors, folder / file, metadata={"format": "pt"})
                tensors, file = {}, shard_of[name]
            tensors[name] = parameter.detach().cpu().clone().contiguous()
            digests[name] = _digest(tensors[name])
        save_file(tensors, folder / file, metadata={"format": "pt"})
        if len(set(shard_of.values())) > 1:
            index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": shard_of}
            write_json(folder / "model.safetensors.index.json", index)
        _copy_configuration(engine.module.causal_lm, source, folder, chat_template)
        (folder / "README.md").write_text(card, encoding="utf-8")
        _require_whole(folder, shard_of, digests)


def _digest(tensor: torch.Tensor) -> str:
    """SHA-256 of a tensor's shape, dtype and values."""
    digest = hashlib.sha256(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
    digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _require_whole(folder: Path, shard_of: dict[str, str], digests: dict[str, str]) -> None:
    """Read the folder back and check that it holds the tensors with these digests, and that they are finite.

    Raises:
        OSError: a tensor differs from what was written: the disk or file system lost data.
        UserError: a weight is not finite.
    """
    found = {}
    for file in dict.fromkeys(shard_of.values()):
        with safe_open(folder / file, framework="pt") as shard:
            for name in shard.keys():  # noqa: SIM118 - not a mapping
                tensor = shard.get_tensor(name)
                if not tensor.isfinite().all():
                    refuse_damaged(str(folder), name)
                found[name] = _digest(tensor)
    wrong = sorted(name for name in digests.keys() | found.keys() if digests.get(name) != found.get(name))
    if wrong:
        raise OSError(f"{folder}: {len(wrong)} tensors differ from what was written, for example {wrong[0]}")


def _shards(sizes: dict[str, int]) -> dict[str, str]:
    """Tensor name -> file name. Files are filled in order, up to `SHARD_BYTES` each."""
    number, filled = 0, 0
    numbers: dict[str, int] = {}
    for name, size in sizes.items():
        if filled and filled + size > SHARD_BYTES:
            number, filled = number + 1, 0
        numbers[name] = number
        filled += size
    if number == 0:
        return dict.fromkeys(sizes, "model.safetensors")
    return {name: f"model-{n + 1:05d}-of-{number + 1:05d}.safetensors" for name, n in numbers.items()}


def _copy_configuration(causal_lm: Any, source: str, folder: Path, chat_template: str | None) -> None:
    from transformers import AutoTokenizer

    causal_lm.config.save_pretrained(folder)
    causal_lm.generation_config.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(source)
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    tokenizer.save_pretrained(folder)
