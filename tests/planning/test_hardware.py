"""Kinds of processors: by profile, by a GPU's name, by the site profile, or measured."""

import pytest

from xlr.errors import UserError
from xlr.model.gpus import data_sheet_flops
from xlr.planning.hardware import GB, PROFILES, TERA, chosen, of_gpu, this_machine
from xlr.planning.machines import Machines
from xlr.settings.slurmconfig import HardwareConfig


@pytest.mark.parametrize(
    ("name", "profile"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-40GB", "a100-40"),
        ("NVIDIA A100-SXM4-80GB", "a100-80"),
        ("NVIDIA A100 80GB PCIe", "a100-80"),
        ("NVIDIA L40S", "l40s"),
        ("AMD Instinct MI300X", "mi300x"),
    ],
)
def test_a_gpu_is_known_by_its_name(name: str, profile: str) -> None:
    found = of_gpu(name)
    assert found.name == profile
    assert found.rate == data_sheet_flops(name)


def test_a_gpu_that_no_profile_knows_is_refused() -> None:
    with pytest.raises(UserError, match=r"GeForce RTX 4090: no profile has this GPU; describe it in slurm\.hardware"):
        of_gpu("NVIDIA GeForce RTX 4090")
    with pytest.raises(UserError, match="GH200 480GB: no profile has this GPU"):
        of_gpu("NVIDIA GH200 480GB")
    with pytest.raises(UserError, match=r"'b300': no known hardware; choose one of h100, .*, or describe it"):
        chosen("b300", "h100")


def test_a_site_profile_describes_its_own_or_changes_a_profile() -> None:
    own = chosen(HardwareConfig(profile="h100", memory_gb=94, price=2.5, currency="EUR"), "h100")
    assert (own.memory, own.rate, own.price, own.currency) == (94 * GB, PROFILES["h100"].rate, 2.5, "EUR")
    own = chosen(HardwareConfig(memory_gb=96, tflops=500, bandwidth_gb=1800), "h100")
    assert (own.name, own.rate, own.bandwidth) == ("own", 500 * TERA, 1800 * GB)
    with pytest.raises(UserError, match=r"slurm\.hardware: tflops, bandwidth_gb not set; set them, or profile"):
        chosen(HardwareConfig(memory_gb=96), "h100")
    with pytest.raises(ValueError, match="has a price without a currency"):
        HardwareConfig(profile="h100", price=2.5)


def test_this_machine_is_measured() -> None:
    own = this_machine()
    assert not own.gpu
    assert own.memory > GB
    assert own.rate > 1e9
    assert own.bandwidth > 1e8


def test_processes_on_cpus_share_a_machine_and_nodes_share_a_network() -> None:
    machine = chosen(HardwareConfig(profile="here"), "here")
    two = Machines(machine, 1, 2)
    assert (two.memory, two.rate_in(4)) == (machine.memory / 2, machine.rate / 2)
    assert (two.width("auto"), two.width("bfloat16")) == (4, 2)
    h100 = PROFILES["h100"]
    assert Machines(h100, 1, 8).exchange == h100.links
    assert Machines(h100, 2, 8).exchange == h100.network
    assert (Machines(h100, 2, 8).count, Machines(h100, 2, 8).memory) == (16, h100.memory)
