"""Checks every file of a run directory, and says what each fault means. Command: `xlr verify RUN`.

All files are read again, whatever is remembered of their digests.
"""

from collections.abc import Iterator
from itertools import product
from pathlib import Path

from xlr import pipeline
from xlr.errors import UserError
from xlr.jobs import submission
from xlr.pipeline import Stage
from xlr.run import identity
from xlr.run.artifact import Artifact
from xlr.run.context import Context
from xlr.run.manifests import differences, foreign, manifest_path, read_manifest
from xlr.run.reuse import kept_faults
from xlr.run.rows import damaged_pieces
from xlr.stages import STAGES
from xlr.tracking.metricslog import whole_rows


def faults(context: Context) -> Iterator[tuple[str, str]]:
    """Each fault of a run: the name of the stage or file, and a sentence with what it means and what to do."""
    for stage in pipeline.stages(context.config):
        for fault in _of_stage(context, stage):
            yield str(stage), fault
    yield from _of_other_judges(context)
    try:
        submission.submitted(context.run.path)
    except UserError as error:
        yield "jobs", str(error)


def _of_other_judges(context: Context) -> Iterator[tuple[str, str]]:
    """Faults of what other judges than the run's found before."""
    for kind, model in product((kind for kind in STAGES if kind.by_judge), context.config.models):
        for folder in context.run.judges(model, kind.artefact):
            if folder.name != context.config.judge.folder:
                name = f"{kind.name} {model} by {folder.name}"
                try:
                    yield from ((name, fault) for fault in _of_finished(folder))
                except UserError as error:
                    yield name, str(error)


def _of_stage(context: Context, stage: Stage) -> Iterator[str]:
    artifact = stage.artifact(context)
    try:
        if read_manifest(artifact.folder) is None:
            yield from _of_unfinished(artifact)
        else:
            yield from _of_finished(artifact.folder)
            artifact.manifest()
        if stage.kind.in_ranks:
            whole_rows(artifact.folder.parent / "metrics.jsonl")
    except UserError as error:
        yield str(error)


def _of_finished(folder: Path) -> Iterator[str]:
    manifest = read_manifest(folder)
    assert manifest is not None
    for path, difference in differences(folder, manifest["files"], fresh=True):
        yield (
            f"{path}: {difference}. No stage reads it any more, but what was read from it before may be wrong. Delete "
            f"{manifest_path(folder)} and start the run again: what follows is kept if the content is the same"
        )
    for path in foreign(folder, manifest):
        yield f"{path}: is not a file of this artefact. No stage reads it; move it elsewhere"
    for path, difference in differences(folder.parent, manifest["records"], fresh=True):
        yield f"{path}: {difference}. It holds the training curves only; the model is not affected"


def _of_unfinished(artifact: Artifact) -> Iterator[str]:
    yield from kept_faults(artifact)
    for folder in artifact.pieces_folders():
        if identity.read_plan(folder) is None:
            yield f"{folder}: has no {identity.PLAN}, so nothing in it is used. Delete it"
        for piece in damaged_pieces(folder):
            yield f"{piece}: is damaged. It is computed again when the run is started again"
