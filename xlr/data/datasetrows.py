"""Datasets of rows: saved with `save_to_disk`, or on the hub."""

import os
from functools import cache
from typing import Any

from xlr.foreign.hub import dataset_folder, is_dataset_name


def is_saved(path: str) -> bool:
    """True for a folder that `save_to_disk` wrote."""
    return os.path.isdir(path) and not {"dataset_dict.json", "dataset_info.json"}.isdisjoint(os.listdir(path))


def is_dataset(path: str) -> bool:
    """True for a saved dataset, and for the name of a hub dataset, whether the hub has it or not."""
    return is_saved(path) or is_dataset_name(path)


def load_saved(path: str) -> Any:
    """The rows of a saved dataset, or of each of its splits by name."""
    import datasets

    return datasets.load_from_disk(path)


def load_hub(name: str, subset: str | None, split: str | None) -> Any:
    """The rows of a hub dataset, by default of the split `train`."""
    import datasets

    return datasets.load_dataset(str(dataset_folder(name)), subset, split=split or "train")


def subsets(name: str) -> list[str]:
    """The configurations of a hub dataset."""
    return _subsets(str(dataset_folder(name)))


@cache  # the folder is that of a commit, so its content stays
def _subsets(folder: str) -> list[str]:
    import datasets

    found: list[str] = datasets.get_dataset_config_names(folder)
    return found
