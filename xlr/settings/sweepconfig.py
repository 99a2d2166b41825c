"""Settings of a sweep: one run, and variants of it."""

from typing import Annotated, Any

from pydantic import Field

from xlr.settings.schema import Section

Overrides = dict[str, Any]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]


class SweepConfig(Section):
    """The file of a sweep. Settings are written as on the command line, such as `pair.rejected: median`."""

    base: str
    """What all variants start from: a configuration file relative to this one, a run directory, or a recipe."""
    sweep_dir: str | None = None
    """Folder of the variants' run directories. null is runs/NAME, after the file's name."""
    overrides: Overrides = Field({})
    """Settings of all variants, in place of those of the base."""
    variants: dict[Name, Overrides] = Field({})
    """Variants by name, each with the settings in which it differs. The variant named base differs in none."""
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field({})
    """Settings with several values each: every combination is a variant, named after its values."""
    at_once: int | None = Field(None, ge=1, le=10_000)
    """Number of Slurm jobs of the sweep that run at the same time. With `array` it limits the tasks of each array by
    itself, and no other job. null sets no limit."""
    array: bool = False
    """Submit the same job of several variants, such as the training of iteration 1, as one Slurm job array, where the
    jobs ask for the same and wait for the same."""
