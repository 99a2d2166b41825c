"""One of two ranks: compares the gradients of families of models with those of one process. See test_families.py.

torchrun --nproc-per-node 2 -m tests.training.families_at_two_ranks FOLDER TYPE...
"""

import os
import sys
from pathlib import Path

import torch

from tests.model.test_families import EXAMPLES, FAMILIES, tiny
from tests.training.conftest import gathering
from tests.training.test_engine import gradient
from xlr.cluster.ranks import ranks
from xlr.model.logprobmodel import LogprobModel
from xlr.packing.batch import batch
from xlr.settings.trainconfig import TrainConfig
from xlr.zero import engine


def main(folder: Path, model_types: list[str]) -> None:
    """Each rank computes one example; the gradient is that of the mean over both."""
    here = ranks()
    assert here is not None
    assert here.world_size == len(EXAMPLES)
    engine.init_distributed(here)
    ds_config = folder / str(here.rank)
    ds_config.mkdir()
    train = TrainConfig(ds_config=gathering("zero3", ds_config))
    for model_type, attention, own in (row[1:] for row in FAMILIES if row[1] in model_types):
        causal_lm = tiny(model_type, own, attention)
        policy = engine.open_policy(str(folder / model_type), train, torch.float32, attention, 3)
        policy.backward(policy(batch([EXAMPLES[here.rank]], attention)).sum())
        plain = LogprobModel(causal_lm)
        torch.stack([plain(batch([example], attention)).sum() for example in EXAMPLES]).mean().backward()
        expected = {name: parameter.grad for name, parameter in plain.named_parameters()}
        for name, parameter in policy.module.named_parameters():
            found, other = gradient(policy, parameter), expected[name]
            difference = (found - (0 if other is None else other)).norm()
            assert difference <= 1e-4 * max(found.norm(), 1e-6), f"{model_type} {name}: {difference} of {found.norm()}"
        if here.rank == 0:
            print(f"equal: {model_type}", flush=True)
    engine.close_distributed()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
    sys.stdout.flush()
    os._exit(0)  # threads of libraries may abort the process while Python ends
