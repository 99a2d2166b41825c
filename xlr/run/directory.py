"""The layout of a run directory."""

import secrets
from pathlib import Path

from xlr.errors import UserError
from xlr.records import ModelKey


class RunDir:
    """The layout of a run directory. ModelKey 0 is the start: pi^0 and its evaluation."""

    def __init__(self, path: str | Path):
        self.path = Path(path)

    def create(self) -> None:
        """Make the directory, readable by its owner alone.

        Raises:
            UserError: it cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            (self.path / "logs").mkdir(exist_ok=True)
            probe = self.path / f".probe.{secrets.token_hex(4)}"
            probe.write_text("")
            probe.unlink()
        except OSError as error:
            raise UserError(
                f"run_dir {self.path}: cannot be written ({error.strerror}); choose a folder you own, "
                "for example with run_dir=..."
            ) from error

    def iteration(self, iteration: ModelKey) -> Path:
        """The folder of one iteration, or of a model beside them."""
        return self.path / (f"iter{iteration}" if isinstance(iteration, int) else f"models/{iteration}")

    @property
    def leases(self) -> Path:
        """Where it is noted who writes what now."""
        return self.path / "leases"

    def log(self, stage: str, iteration: ModelKey) -> Path:
        """The log file of one stage."""
        return self.path / "logs" / f"{stage}-{iteration}.log"
