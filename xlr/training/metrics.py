"""Training metrics: means over the pairs of all ranks, in total and for each language."""

import resource
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
