"""Models and datasets of the Hugging Face hub, as folders in the local cache.

A name may end with a revision, a branch, tag or commit: `owner/name@revision`. A run uses one commit of each from start
to end.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from xlr.errors import UserError
from xlr.foreign.modelfiles import reason

Kind = Literal["model", "dataset"]

_REVISION = r"\w[\w./+-]*"
_DATASET_NAME = re.compile(rf"\w[\w.-]*/\w[\w.-]*(@{_REVISION})?")
_FILE_OF_ROWS = re.compile(r"\.(jsonl|json|csv|tsv|parquet)(\.gz)?$")

_WEIGHTS = "*.safetensors"
# What a model or a dataset is opened from. Pickled weights and code are not downloaded.
_FILES: dict[Kind, tuple[str, ...]] = {
    "model": ("*.json", _WEIGHTS, "*.jinja", "*.model", "*.txt"),
    "dataset": ("README.md", ".huggingface.yaml", "*.json*", "*.csv*", "*.tsv*", "*.parquet", "*.arrow"),
}
_REMEDIES: dict[Kind, str] = {
    "model": "name a Hugging Face folder with config.json and safetensors weights, or a hub name that this machine can "
    "reach",
    "dataset": "name files of rows, a folder, or a hub name that this machine can reach",
}


@dataclass(frozen=True)
class Repository:
    """A model or dataset on the hub."""

    name: str
    kind: Kind = "model"
    revision: str | None = None
    """A branch, tag or commit; None is the main branch."""

    def __str__(self) -> str:
        return self.text if self.kind == "model" else f"datasets/{self.text}"

    @property
    def text(self) -> str:
        """As a configuration names it."""
        return f"{self.name}@{self.revision}" if self.revision else self.name


@dataclass(frozen=True)
class Contents:
    """What xlr needs of a repository at one commit."""

    commit: str
    num_bytes: int
    missing_bytes: int
    """Of these, the bytes of the files that are not in the cache."""


def is_dataset_name(text: str) -> bool:
    """True for `owner/name`, also with `@revision`, unless it is a path here or ends like a file of rows."""
    return bool(_DATASET_NAME.fullmatch(text)) and not _FILE_OF_ROWS.search(text) and not os.path.lexists(text)


def named(text: str, kind: Kind = "model") -> Repository:
    """The repository that a configuration names: `owner/name`, or `owner/name@revision`.

    Raises:
        UserError: what follows the @ is no revision.
    """
    name, at, revision = text.partition("@")
    if at and not re.fullmatch(_REVISION, revision):
        raise UserError(f"{text}: no revision after the @; write owner/name@ and a branch, tag or commit, or a path")
    return Repository(name, kind, revision or None)


def snapshot(repository: Repository, commit: str | None, weights: bool = True) -> Path:
    """The folder of a model or dataset, whose name is the commit. It is downloaded unless it is in the cache.

    Args:
        commit: the commit; None takes the newest of the revision, or the one in the cache if the hub cannot be reached.
        weights: False leaves the weights of a model out.

    Raises:
        UserError: the hub has no such repository or revision, or cannot be reached and the files are not in the cache.
    """
    from huggingface_hub import snapshot_download

    patterns = [pattern for pattern in _FILES[repository.kind] if weights or pattern != _WEIGHTS]
    revision = commit or repository.revision
    try:
        return Path(
            snapshot_download(repository.name, repo_type=repository.kind, revision=revision, allow_patterns=patterns)
        )
    except (OSError, ValueError) as error:
        raise _not_given(repository, commit, error) from error


def contents(repository: Repository, commit: str | None) -> Contents:
    """What `snapshot` would download, which only the hub knows.

    Raises:
        UserError: the hub has no such repository or revision, or cannot be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import DryRunError

    patterns, revision = list(_FILES[repository.kind]), commit or repository.revision
    try:
        files = snapshot_download(
            repository.name, repo_type=repository.kind, revision=revision, allow_patterns=patterns, dry_run=True
        )
    except (OSError, ValueError) as error:
        why = error.__cause__ if isinstance(error, DryRunError) else None  # it only says that there is no dry run
        raise _not_given(repository, commit, why or error) from error
    if not files:
        raise _not_given(repository, commit, ValueError(f"it has no files such as {', '.join(patterns)}"))
    sizes = [(file.file_size or 0, file.will_download) for file in files]
    return Contents(files[0].commit_hash, sum(size for size, _ in sizes), sum(size for size, own in sizes if own))


def dataset_folder(name: str) -> Path:
    """The folder of a dataset, `owner/name` or `owner/name@revision`; see `snapshot`."""
    return snapshot(named(name, "dataset"), None)


def _not_given(repository: Repository, commit: str | None, error: BaseException) -> UserError:
    from huggingface_hub.errors import RevisionNotFoundError

    kind = repository.kind
    which = f"{repository.text} at commit {commit}" if commit else repository.text
    if isinstance(error, RevisionNotFoundError) and repository.revision and not commit:
        return UserError(
            f"{which}: the hub has no revision {repository.revision} of this {kind}; name a branch, tag or commit that "
            f"it has, or {repository.name} alone for the newest commit"
        )
    return UserError(
        f"{which}: not a folder, and the hub does not give this {kind} ({reason(error)}); {_REMEDIES[kind]}, or run "
        "`xlr fetch` where there is a network"
    )
