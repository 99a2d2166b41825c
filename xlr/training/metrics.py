"""Training metrics: means over the pairs of all ranks, in total and for each language.

Shapes: `L` layers with experts, `E` experts.
"""

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

    def __init__(self, languages: Sequence[str], device: torch.device, reference: bool):
        """Start at zero.

        Args:
            reference: whether there is a reference; without one there is no `kl`.
        """
        self._names = _NAMES if reference else tuple(name for name in _NAMES if name != "kl")
        self._groups = {lang: row for row, lang in enumerate(["", *languages])}
        # Rows: all pairs, then each language. Columns: the metrics, number of pairs, number of tokens.
        self._sums_GM = torch.zeros(len(self._groups), len(self._names) + 2, dtype=torch.float64, device=device)
        self._aux_loss = torch.zeros((), dtype=torch.float64, device=device)
        self._loads_LE = torch.zeros((), dtype=torch.float64, device=device)

    def add(self, langs: Sequence[str], values: Mapping[str, Tensor], tokens: int) -> None:
        """Add a micro-batch. Each tensor of `values` holds one number per pair, `(B,)`."""
        values_BM = torch.stack([values[name].double() for name in self._names], 1)
        counted_BM = torch.cat([values_BM, values_BM.new_tensor([[1.0, 0.0]]).expand(len(langs), -1)], 1)
        groups_B = torch.tensor([self._groups[lang] for lang in langs], device=counted_BM.device)
        self._sums_GM.index_add_(0, groups_B, counted_BM)
        self._sums_GM[0] += counted_BM.sum(0)
        self._sums_GM[0, -1] += tokens

    def add_balance(self, aux_loss: Tensor, loads_LE: Tensor, tokens: int) -> None:
        """Add a micro-batch of a mixture of experts: its load-balancing loss, and the tokens of each expert."""
        self._aux_loss = self._aux_loss + aux_loss.double() * tokens
        self._loads_LE = self._loads_LE + (loads_LE.double() if tokens else 0.0 * loads_LE.double())

    def reduce(self) -> MetricsRow:
        """Means over the pairs of all ranks, and how even the experts' loads are: one collective of a small tensor."""
        parts = (self._sums_GM, self._aux_loss, self._loads_LE)
        summed = torch.cat([part.flatten() for part in parts])
        dist.all_reduce(summed)
        each = zip(summed.cpu().split([part.numel() for part in parts]), parts, strict=True)
        sums_GM, aux_loss, loads_LE = (values.view(part.shape) for values, part in each)
        values = {"num_tokens": float(sums_GM[0, -1])}
        if loads_LE.dim():
            values["router/aux_loss"] = float(aux_loss) / values["num_tokens"]
            values["router/max_load"] = float((loads_LE.amax(1) / loads_LE.mean(1)).max())
        for lang, group in self._groups.items():
            if sums_GM[group, -2] > 0:
                prefix = f"lang/{lang}/" if lang else ""
                means_M = (sums_GM[group, :-2] / sums_GM[group, -2]).tolist()
                values |= {prefix + name: mean for name, mean in zip(self._names, means_M, strict=True)}
        return values
