"""The layout of a run directory."""

import shlex
import stat
import tempfile
from pathlib import Path

from xlr.errors import UserError
from xlr.records import ModelKey
from xlr.run.manifests import MANIFEST, manifest_path


class RunDir:
    """Paths in a run directory. Iteration 0 holds pi^0 and its evaluation."""

    def __init__(self, path: str | Path):
        self.path = Path(path)

    def create(self) -> None:
        """Create the directory, with access for its owner only, or check the existing one.

        Raises:
            UserError: it cannot be written, or every user of the machine can write to it.
        """
        if self.path.is_dir() and self.path.stat().st_mode & stat.S_IWOTH:
            raise UserError(
                f"run_dir {self.path}: every user of this machine can write to it, and change the run; "
                f"run `chmod o-w {shlex.quote(str(self.path))}` or choose another folder"
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            (self.path / "logs").mkdir(exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):  # nothing is left of it, whenever this process is killed
                pass
        except OSError as error:
            raise UserError(
                f"run_dir {self.path}: cannot be written ({error.strerror}); choose a folder you own, "
                "for example with run_dir=..."
            ) from error

    def iteration(self, iteration: ModelKey) -> Path:
        """The folder of an iteration, or of a model of `evaluate.models`."""
        return self.path / (f"iter{iteration}" if isinstance(iteration, int) else f"models/{iteration}")

    def judged(self, model: ModelKey, artefact: str, judge: str) -> Path:
        """The folder of what a judge found of a model: each judge has its own.

        Raises:
            UserError: an earlier xlr made it, which kept one judge only.
        """
        folder = self.iteration(model) / artefact
        if (manifest := manifest_path(folder)).is_file():
            raise UserError(
                f"{folder}: an earlier xlr made it, which kept one judge only; delete {manifest} and the folder to "
                "judge again. An endpoint's verdicts are kept, so that they are not paid twice"
            )
        return folder / judge

    def judges(self, model: ModelKey, artefact: str) -> list[Path]:
        """The folders in which judges have finished what they were asked about a model, in the order of their names."""
        manifests = sorted((self.iteration(model) / artefact).glob(f"*{MANIFEST}"))
        return [path.with_name(path.name.removesuffix(MANIFEST)) for path in manifests]

    @property
    def leases(self) -> Path:
        """The folder of the leases, which say which process writes which artefact."""
        return self.path / "leases"

    def log(self, stage: str, iteration: ModelKey) -> Path:
        """The log file of a stage in an iteration."""
        return self.path / "logs" / f"{stage}-{iteration}.log"
