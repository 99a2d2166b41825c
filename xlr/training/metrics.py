"""Training metrics: means over the pairs of all ranks, in total and for each language."""

import resource
import time
from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from xlr.training.facts import MetricsRow

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

# Peak dense bfloat16 FLOP/s from the vendor's data sheets.
_PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "H800": 989e12, "A100": 312e12, "A800": 312e12, "L40S": 362e12}
_PROBE_SIZE = 1024


def peak_flops(device: torch.device) -> float:
    """Peak FLOP/s for MFU: from the data sheet on known GPUs, else the measured rate of a matrix product."""
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
    """Sums of metrics over all pairs and over the pairs of each language.

    The sums stay on the device, so that adding a micro-batch does not synchronise. Only `reduce` does, once per step.
    """

    def __init__(self, languages: Sequence[str], device: torch.device):
        self._groups = {lang: row for row, lang in enumerate(["", *languages])}
        # Rows: all pairs, then each language. Columns: `_NAMES`, number of pairs, number of tokens.
        self._sums_GM = torch.zeros(len(self._groups), len(_NAMES) + 2, dtype=torch.float64, device=device)

    def add(self, langs: Sequence[str], values: Mapping[str, Tensor], tokens: int) -> None:
        """Add a micro-batch. Each tensor of `values` holds one number per pair, `(B,)`."""
        values_BM = torch.stack([values[name].double() for name in _NAMES], 1)
        counted_BM = torch.cat([values_BM, values_BM.new_tensor([[1.0, 0.0]]).expand(len(langs), -1)], 1)
        groups_B = torch.tensor([self._groups[lang] for lang in langs], device=counted_BM.device)
        self._sums_GM.index_add_(0, groups_B, counted_BM)
        self._sums_GM[0] += counted_BM.sum(0)
        self._sums_GM[0, -1] += tokens

    def reduce(self) -> MetricsRow:
        """Means over the pairs of all ranks: one collective of a small tensor."""
        dist.all_reduce(self._sums_GM)
        sums_GM = self._sums_GM.cpu()
        values = {"num_tokens": float(sums_GM[0, -1])}
        for lang, group in self._groups.items():
            if sums_GM[group, -2] > 0:
                prefix = f"lang/{lang}/" if lang else ""
                means_M = (sums_GM[group, :-2] / sums_GM[group, -2]).tolist()
                values |= {prefix + name: mean for name, mean in zip(_NAMES, means_M, strict=True)}
        return values


def peak_memory_gb(device: torch.device) -> float:
    """Peak memory of this process so far, in 10^9 bytes: GPU memory on GPUs, else host memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
