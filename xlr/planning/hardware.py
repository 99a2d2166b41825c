"""Kinds of processors: their memory, rates and price. From data sheets, the site profile, or the machine itself."""

import re
from dataclasses import dataclass, replace
from typing import Any

from xlr.errors import UserError
from xlr.settings.slurmconfig import HardwareConfig

GB, TERA = 10**9, 10**12
HERE = "here"
"""Names the machine that plans."""


@dataclass(frozen=True)
class Hardware:
    """One GPU, or all CPUs of a node. A GPU has the peak rates of its data sheet: dense products in bfloat16."""

    name: str
    memory: float
    """Bytes, as the driver counts them."""
    rate: float
    """Operations a second."""
    bandwidth: float
    """Bytes a second from its memory."""
    links: float
    """Bytes a second to the other GPUs of its node, in one direction."""
    network: float = 25 * GB
    """Bytes a second between nodes, for each node."""
    gpu: bool = True
    price: float | None = None
    """Of an hour of one GPU, or of one node without GPUs."""
    currency: str | None = None


PROFILES = {
    profile.name: profile
    for profile in (
        Hardware("h100", 85.5 * GB, 989 * TERA, 3350 * GB, 450 * GB),
        Hardware("h100-pcie", 85.5 * GB, 756 * TERA, 2000 * GB, 64 * GB),
        Hardware("h200", 150.7 * GB, 989 * TERA, 4800 * GB, 450 * GB),
        Hardware("a100-80", 85.9 * GB, 312 * TERA, 2039 * GB, 300 * GB),
        Hardware("a100-40", 42.9 * GB, 312 * TERA, 1555 * GB, 300 * GB),
        Hardware("l40s", 48.3 * GB, 362 * TERA, 864 * GB, 32 * GB),
        Hardware("mi300x", 206.1 * GB, 1307 * TERA, 5300 * GB, 448 * GB),
    )
}


def chosen(given: str | HardwareConfig | None, fallback: str) -> Hardware:
    """The hardware that a site profile or the command line names.

    Args:
        given: the name of a profile, or a section; None takes `fallback`.

    Raises:
        UserError: no profile has the name, or a section without one lacks memory, rate or bandwidth.
    """
    if not isinstance(given, HardwareConfig):
        return _profile(given or fallback)
    base = _profile(given.profile) if given.profile else None
    own: dict[str, Any] = {
        "memory": given.memory_gb and given.memory_gb * GB,
        "rate": given.tflops and given.tflops * TERA,
        "bandwidth": given.bandwidth_gb and given.bandwidth_gb * GB,
        "links": given.links_gb and given.links_gb * GB,
        "network": given.network_gb and given.network_gb * GB,
        "price": given.price,
        "currency": given.currency,
    }
    known = {key: value for key, value in own.items() if value is not None}
    if base is not None:
        return replace(base, **known)
    if missing := [f"{key}" for key in ("memory_gb", "tflops", "bandwidth_gb") if getattr(given, key) is None]:
        raise UserError(
            f"slurm.hardware: {', '.join(missing)} not set; set them, or profile to one of {', '.join(PROFILES)}"
        )
    return Hardware(**{"name": "own", "links": 32 * GB, **known})


def _profile(name: str) -> Hardware:
    if name == HERE:
        return this_machine()
    if name not in PROFILES:
        raise UserError(
            f"{name!r}: no known hardware; choose one of {', '.join(PROFILES)} or {HERE}, or describe it in "
            "slurm.hardware of the site profile: memory_gb, tflops, bandwidth_gb"
        )
    return PROFILES[name]


_PARTS = {
    "H100 PCIe": "h100-pcie",
    "H100": "h100",
    "H200": "h200",
    "A100-SXM4-40GB": "a100-40",
    "A100-PCIE-40GB": "a100-40",
    "A100": "a100-80",
    "L40S": "l40s",
    "MI300X": "mi300x",
}
"""A part of a GPU's name, as its driver gives it -> profile. The first that fits counts."""


def of_gpu(name: str) -> Hardware:
    """The profile of a GPU by the name that its driver gives it.

    Raises:
        UserError: it has none.
    """
    profile = next((PROFILES[own] for part, own in _PARTS.items() if re.search(rf"\b{part}\b", name)), None)
    if profile is None:
        raise UserError(
            f"{name}: no profile has this GPU; describe it in slurm.hardware of the site profile: memory_gb, tflops, "
            "bandwidth_gb"
        )
    return profile


def gpus_here() -> int:
    """The number of GPUs of this machine."""
    import torch

    return torch.cuda.device_count()


def this_machine() -> Hardware:
    """The GPUs of this machine; else its CPUs, with the rate of a float32 product and of a copy, measured in a second.

    Raises:
        UserError: no profile has its GPUs.
    """
    import time

    import psutil
    import torch

    if torch.cuda.is_available():
        found = of_gpu(torch.cuda.get_device_name(0))
        return replace(found, memory=torch.cuda.get_device_properties(0).total_memory)

    def fastest(work: "torch.Tensor", times: int) -> float:
        seconds = []
        for _ in range(times):
            begun = time.perf_counter()
            _ = work @ work if work.dim() == 2 else work.clone()
            seconds.append(time.perf_counter() - begun)
        return min(seconds)

    size, length = 1024, 1 << 26
    product, copy = fastest(torch.rand(size, size), 5), fastest(torch.rand(length), 3)
    memory = psutil.virtual_memory().total
    return Hardware("CPU", memory, 2 * size**3 / product, 2 * 4 * length / copy, 10 * GB, gpu=False)
