"""Training metrics: summed over pairs and ranks, per language too, to metrics.jsonl and TensorBoard."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

_NAMES = (
    "loss",
    "nll_loss",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "rewards/accuracies",
    "logps/chosen",
    "logps/rejected",
    "kl",
)

# Dense bfloat16 FLOP/s from the vendors' data sheets.
_PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "H800": 989e12, "A100": 312e12, "A800": 312e12, "L40S": 362e12}
_PROBE_SIZE = 1024


def peak_flops(device: torch.device) -> float:
    """What MFU is a share of: the data sheet's rate on known GPUs, a measured matrix-product rate elsewhere."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for known, flops in _PEAK_FLOPS.items():
            if known in name:
                return flops
    a = torch.rand(_PROBE_SIZE, _PROBE_SIZE, device=device)
    fastest = float("inf")
    for _ in range(5):
        begun = time.perf_counter()
        float((a @ a)[0, 0])
        fastest = min(fastest, time.perf_counter() - begun)
    return 2 * _PROBE_SIZE**3 / fastest


class Metrics:
    """Sums over the pairs of one optimizer step, over all pairs and for each language."""

    def __init__(self, languages: Sequence[str]):
        self._groups = {lang: row for row, lang in enumerate(["", *languages])}
        # Rows: all pairs, then each language. Columns: the names, pairs, tokens.
        self._sums = torch.zeros(len(self._groups), len(_NAMES) + 2, dtype=torch.float64)

    def add(self, langs: Sequence[str], values: Mapping[str, Tensor], tokens: int) -> None:
        """Add a micro-batch: each value has one number a pair."""
        columns_BM = torch.stack([values[name] for name in _NAMES], 1).double().cpu()
        for lang, row_M in zip(langs, columns_BM, strict=True):
            for group in (0, self._groups[lang]):
                self._sums[group, :-2] += row_M
                self._sums[group, -2] += 1
        self._sums[0, -1] += tokens

    def reduce(self, device: torch.device) -> dict[str, float]:
        """Means over the pairs of all ranks: a collective of one small tensor."""
        sums = self._sums.to(device)
        dist.all_reduce(sums)
        sums = sums.cpu()
        values = {"num_tokens": float(sums[0, -1])}
        for lang, group in self._groups.items():
            if sums[group, -2] > 0:
                prefix = f"lang/{lang}/" if lang else ""
                means = (sums[group, :-2] / sums[group, -2]).tolist()
                values |= {prefix + name: mean for name, mean in zip(_NAMES, means, strict=True)}
        return values


class MetricsLog:
    """Writes one line a step; lines that a resumed run will write again are dropped first."""

    def __init__(self, folder: Path, steps_done: int):
        from torch.utils.tensorboard import SummaryWriter

        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "metrics.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)[:steps_done] if path.is_file() else []
        self._file = path.open("w", encoding="utf-8")
        self._file.writelines(lines)
        self._tensorboard = SummaryWriter(str(folder / "tensorboard"), purge_step=steps_done + 1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Log the metrics of one optimizer step."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._tensorboard.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush everything."""
        self._file.close()
        self._tensorboard.close()
