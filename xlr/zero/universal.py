"""Converts a checkpoint to DeepSpeed's universal format: `python -m xlr.zero.universal CHECKPOINT TARGET WORKERS`.

A process of its own does it, because its workers are forked: a training rank has threads and may hold a GPU.
"""

import multiprocessing
import sys
from argparse import Namespace

from xlr.zero import pickles
from xlr.zero.hiding import hidden

with hidden("mlflow"):  # see engine
    from deepspeed.checkpoint import ds_to_universal
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

CLASSES = (LossScaler, ZeroStageEnum, fragment_address)
"""The classes in checkpoints of DeepSpeed, beside tensors and plain values."""


def main(checkpoint: str, target: str, workers: int) -> None:
    """Convert a checkpoint, whose files hold only data, with this many processes."""
    pickles.forbid_code(CLASSES)
    multiprocessing.set_start_method("fork")  # the workers then forbid code, too
    ds_to_universal.main(
        Namespace(
            input_folder=checkpoint,
            output_folder=target,
            num_extract_workers=workers,
            num_merge_workers=workers,
            keep_temp_folder=False,
            strict=True,
            inject_missing_state=True,
        )
    )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
