"""Uploads files to a model repository of the Hugging Face hub, as one commit.

`create_commit` of huggingface_hub sends the large files first, each under its digest, and then makes one commit of all.
So an interrupted upload changes nothing that others see, and the next one sends no complete large file again.
`upload_folder` and `upload_large_folder` make several commits of a slow upload, between which a model is half new.
"""

import contextlib
import fnmatch
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xlr.errors import UserError
from xlr.foreign.modelfiles import reason

MAIN = "main"
_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_WEIGHTS = "model*.safetensors*"


@dataclass(frozen=True)
class Destination:
    """A branch of a model repository."""

    name: str
    branch: str
    private: bool
    new: bool
    """The repository is not there yet, or hidden from this user."""


def destination(name: str, branch: str, public: bool) -> Destination:
    """Ask the hub who this user is and what the repository is. Nothing is changed.

    Args:
        public: whether a new repository will be public.

    Raises:
        UserError: this is no name of a repository, the hub does not know the user, or it cannot be reached.
    """
    if not _NAME.fullmatch(name):
        raise UserError(f"{name}: no name of a repository; write owner/name, where owner is you or your organisation")
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    api = HfApi()
    with _asking(name):
        api.whoami()
        try:
            return Destination(name, branch, private=bool(api.model_info(name).private), new=False)
        except RepositoryNotFoundError:
            return Destination(name, branch, private=not public, new=True)


def upload(target: Destination, files: Mapping[str, Path], message: str) -> str:
    """Make repository and branch if they are new, and commit the files. Weights of an earlier model are removed.

    Args:
        files: name in the repository -> file.
        message: of the commit.

    Returns:
        The address of the commit.

    Raises:
        UserError: the user may not write there, or the upload broke off.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi()
    with _asking(target.name):
        if target.new:
            api.create_repo(target.name, private=target.private, exist_ok=True)
        if target.branch != MAIN:
            api.create_branch(target.name, branch=target.branch, exist_ok=True)
        there = api.list_repo_files(target.name, revision=target.branch)
        old = [name for name in there if fnmatch.fnmatch(name, _WEIGHTS) and name not in files]
        operations: list[Any] = [CommitOperationDelete(name) for name in old]
        operations += [CommitOperationAdd(name, file) for name, file in files.items()]
        done = api.create_commit(target.name, operations, commit_message=message, revision=target.branch)
    return str(done.commit_url)


@contextlib.contextmanager
def _asking(name: str) -> Iterator[None]:
    """Turn what goes wrong with the hub into bad input.

    Raises:
        UserError: something did.
    """
    from huggingface_hub.errors import HTTPError

    try:
        yield
    except (HTTPError, OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{name}: {_explained(error)}") from error


def _explained(error: Exception) -> str:
    """What went wrong, and the remedy."""
    from huggingface_hub.errors import LocalTokenNotFoundError, OfflineModeIsEnabled, RepositoryNotFoundError

    status = next((cause.response.status_code for cause in _causes(error) if hasattr(cause, "response")), None)
    if isinstance(error, LocalTokenNotFoundError):
        return "you are not logged in to the hub; run `hf auth login`, or set HF_TOKEN to a token that may write"
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, so the hub is not asked; unset it, and push where there is a network"
    if status == 401:
        return "the hub does not accept your token; run `hf auth login` again, or correct HF_TOKEN"
    if status == 403 or isinstance(error, RepositoryNotFoundError):
        return (
            f"you may not write there ({reason(error)}); use a token that may write, and an owner that is you or your "
            "organisation"
        )
    if status is not None and status < 500:
        return f"the hub refuses it ({reason(error)}); correct what it names"
    return f"the upload broke off ({reason(error)}); push again: complete large files are not sent again"


def _causes(error: BaseException | None) -> Iterator[Any]:
    while error is not None:
        yield error
        error = error.__cause__
