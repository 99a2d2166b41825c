"""A run from Python: its tables, models and figures, read when they are asked for."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xlr import configfile
from xlr.errors import UserError
from xlr.records import ModelKey
from xlr.run.context import Context
from xlr.run.manifests import parquet_files, read_manifest
from xlr.run.rows import row_count
from xlr.settings.config import Config

if TYPE_CHECKING:
    import datasets
    import pandas
    import pyarrow


@dataclass(frozen=True)
class Table:
    """The rows of a finished artefact. Nothing is read before one of the methods is called.

    Each method raises `UserError` if the artefact is not finished, or a file has changed since it was written.
    """

    folder: Path
    pattern: str = "*"
    """The names of its Parquet files in the artefact."""

    def __len__(self) -> int:
        """Number of rows."""
        return sum(map(row_count, self.files))

    @property
    def files(self) -> list[Path]:
        """Its Parquet files, after comparing them with the manifest."""
        return parquet_files(self.folder, self.pattern)

    def to_arrow(self) -> "pyarrow.Table":
        """The rows as an Arrow table."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        return pa.concat_tables([pq.read_table(file) for file in self.files])

    def to_pandas(self) -> "pandas.DataFrame":
        """The rows as a data frame."""
        return self.to_arrow().to_pandas()

    def to_dataset(self) -> "datasets.Dataset":
        """The rows as a dataset of Hugging Face's library, which maps the files into memory."""
        import datasets

        return datasets.Dataset.from_parquet([str(file) for file in self.files])


class Run:
    """A run directory. `xlr.open` makes it.

    Args:
        folder: the run directory.

    Raises:
        UserError: the folder holds no run.
    """

    def __init__(self, folder: str | Path):
        self.path = Path(folder).absolute()
        if not (self.path / "config.yaml").is_file():
            raise UserError(f"{self.path}: no run directory; it has no config.yaml")

    def __repr__(self) -> str:
        return f"xlr.open({str(self.path)!r})"

    @cached_property
    def config(self) -> Config:
        """The resolved configuration."""
        return Context(configfile.load_here(self.path)).config

    @cached_property
    def _context(self) -> Context:
        return Context(self.config)

    @property
    def iterations(self) -> list[int]:
        """The iterations that are trained: 1, 2, ..."""
        return self.config.trained_iterations

    def translations(self, iteration: int) -> Table:
        """With `pair.by: translations`, the translated responses, in the columns of `responses`."""
        return self._table(iteration, "translations")

    def responses(self, iteration: int) -> Table:
        """The sampled responses: `id, lang, sample, response, token_ids, finish_reason`."""
        return self._table(iteration, "responses")

    def scores(self, iteration: int) -> Table:
        """The scored responses: `id, lang, sample, response, reward, logp_policy, logp_reference, ...`."""
        return self._table(iteration, "scores")

    def pairs(self, iteration: int) -> Table:
        """The preference pairs, in the form that TRL reads: `prompt, chosen, rejected, id, lang, ...`."""
        return self._table(iteration, "pairs")

    def answers(self, model: ModelKey) -> Table:
        """A model's answers to the held-out prompts.

        Args:
            model: an iteration's number (0 is pi^0), or a name in evaluate.models.
        """
        return Table(self._context.run.iteration(model) / "eval", "responses/*")

    def dialogues(self, model: ModelKey) -> Table:
        """A model's answers to questions of several turns, in the columns of `responses`; `sample` is the turn, from 0.

        Args:
            model: an iteration's number (0 is pi^0), or a name in evaluate.models.
        """
        return Table(self._context.run.iteration(model) / "dialogues")

    def ratings(self, model: ModelKey) -> Table:
        """The ratings of these answers by the run's judge: `id, lang, turn, rating, reply`.

        Args:
            model: an iteration's number (0 is pi^0), or a name in evaluate.models.
        """
        return Table(self._context.run.judged(model, "ratings", self._context.config.judge.folder))

    def model(self, model: ModelKey) -> str:
        """The folder or hub name of a model, for `from_pretrained`. Its files are compared with the manifest.

        Args:
            model: an iteration's number (0 is pi^0), or a name in evaluate.models.

        Raises:
            UserError: it is not trained yet, or a file has changed.
        """
        return self._context.require_model(model)

    def facts(self, iteration: ModelKey, artefact: str) -> Any:
        """What a stage found, from the manifest of its artefact, such as `facts(1, "pairs")`.

        Raises:
            UserError: the artefact is not finished.
        """
        folder = self._context.run.iteration(iteration) / artefact
        manifest = read_manifest(folder)
        if manifest is None:
            raise UserError(f"{folder}: not finished")
        return manifest["facts"]

    def _table(self, iteration: int, name: str) -> Table:
        return Table(self._context.run.iteration(iteration) / name)


def open_run(folder: str | Path) -> Run:
    """Open a run directory.

    Raises:
        UserError: the folder holds no run.
    """
    return Run(folder)
