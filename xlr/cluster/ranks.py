"""Which training process this one is. No other module reads ranks from the environment."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

_LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
_SRUN = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")


@dataclass(frozen=True)
class Ranks:
    """This process's place among the training processes: over all nodes, and on its own node."""

    rank: int
    world_size: int
    local_rank: int


def ranks(environment: Mapping[str, str] = os.environ) -> Ranks | None:
    """This process's ranks as a launcher (torchrun, deepspeed, xlr itself) or srun set them; None outside of one.

    Batch scripts and interactive shells have SLURM_PROCID too, so only a job step with several tasks counts.
    """
    if all(name in environment for name in _LAUNCHER):
        return Ranks(*(int(environment[name]) for name in _LAUNCHER))
    if all(name in environment for name in _SRUN) and int(environment["SLURM_STEP_NUM_TASKS"]) > 1:
        return Ranks(*(int(environment[name]) for name in _SRUN))
    return None
