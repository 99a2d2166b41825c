"""This process's rank among the training processes. The only module that reads ranks from the environment."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

RENDEZVOUS = "XLR_RENDEZVOUS"
"""Environment variable with the path of a new file through which the ranks of one machine meet."""

_LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
_SRUN = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")


@dataclass(frozen=True)
class Ranks:
    """This process's rank over all nodes and on its own node, and the number of ranks."""

    rank: int
    world_size: int
    local_rank: int


def ranks(environment: Mapping[str, str] = os.environ) -> Ranks | None:
    """The ranks that a launcher (torchrun, deepspeed or xlr) or srun set for this process; None if there are none.

    Slurm also sets SLURM_PROCID in batch scripts and interactive shells, so only a job step with several tasks counts.
    """
    if all(name in environment for name in _LAUNCHER):
        return Ranks(*(int(environment[name]) for name in _LAUNCHER))
    if all(name in environment for name in _SRUN) and int(environment["SLURM_STEP_NUM_TASKS"]) > 1:
        return Ranks(*(int(environment[name]) for name in _SRUN))
    return None
