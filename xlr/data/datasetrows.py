"""Datasets of rows: saved with `save_to_disk`, or on the hub."""

import os
from functools import cache
from typing import Any

from xlr.errors import UserError
from xlr.foreign.hub import dataset_folder, is_dataset_name
from xlr.settings.dataconfig import PreferencesConfig, PromptsConfig


def is_saved(path: str) -> bool:
    """True for a folder that `save_to_disk` wrote."""
    return os.path.isdir(path) and not {"dataset_dict.json", "dataset_info.json"}.isdisjoint(os.listdir(path))


def is_dataset(path: str) -> bool:
    """True for a saved dataset, and for the name of a hub dataset, whether the hub has it or not."""
    return is_saved(path) or is_dataset_name(path)


def require_effect(section: PromptsConfig | PreferencesConfig) -> None:
    """Check that a split or a subset is asked for only where there can be one.

    Raises:
        UserError: the path is a file or a folder without them.
    """
    path = section.path
    if section.split is not None and os.path.lexists(path) and not is_saved(path):
        raise UserError(f"{path}: is no dataset, so that split={section.split} has no effect; remove it")
    if section.subset is not None and os.path.lexists(path):
        raise UserError(f"{path}: is not on the hub, so that subset={section.subset} has no effect; remove it")


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
