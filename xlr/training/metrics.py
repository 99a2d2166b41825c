"""Training metrics: summed over pairs and ranks, per language too."""

import resource
import time
from collections.abc import Mapping, Sequence

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
    """Sums over pairs, over all of them and for each language.

    They stay on the device: a micro-batch adds to them without waiting for it. `reduce` waits, once a step.
    """

    def __init__(self, languages: Sequence[str], device: torch.device):
        self._groups = {lang: row for row, lang in enumerate(["", *languages])}
        # Rows: all pairs, then each language. Columns: the names, pairs, tokens.
        self._sums_GM = torch.zeros(len(self._groups), len(_NAMES) + 2, dtype=torch.float64, device=device)

    def add(self, langs: Sequence[str], values: Mapping[str, Tensor], tokens: int) -> None:
        """Add a micro-batch: each value has one number a pair."""
        values_BM = torch.stack([values[name].double() for name in _NAMES], 1)
        counted_BM = torch.cat([values_BM, values_BM.new_tensor([[1.0, 0.0]]).expand(len(langs), -1)], 1)
        groups_B = torch.tensor([self._groups[lang] for lang in langs], device=counted_BM.device)
        self._sums_GM.index_add_(0, groups_B, counted_BM)
        self._sums_GM[0] += counted_BM.sum(0)
        self._sums_GM[0, -1] += tokens

    def reduce(self) -> dict[str, float]:
        """Means over the pairs of all ranks: a collective of one small tensor."""
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
    """The most memory this process has had so far: of the GPU's, or on CPUs of the machine's. 10^9 bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
