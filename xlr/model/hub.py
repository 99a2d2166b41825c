"""Models of the Hugging Face hub, as folders in the local cache. A run uses one commit of each from start to end."""

from pathlib import Path

from xlr.errors import UserError
from xlr.foreign.modelfiles import reason

# What a model is opened from. Pickled weights and code are not downloaded.
_FILES = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt")


def snapshot(name: str, commit: str | None) -> Path:
    """The folder of a hub model, whose name is the commit. It is downloaded unless it is in the cache.

    Args:
        commit: the commit; None takes the newest, or the one in the cache if the hub cannot be reached.

    Raises:
        UserError: the hub has no such model, or cannot be reached and the model is not in the cache.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=commit, allow_patterns=list(_FILES)))
    except (OSError, ValueError) as error:
        which = f"{name} at commit {commit}" if commit else name
        raise UserError(
            f"{which}: not a folder, and the hub does not give this model ({reason(error)}); name a Hugging Face "
            "folder with config.json and safetensors weights, or a hub name that this machine can reach"
        ) from error
