"""report.json from a run: the manifests of its finished stages, their evaluations and win rates."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

from xlr.certificate.facts import Certificate, prefix
from xlr.errors import UserError
from xlr.evaluation import annotations, difficulty, winrates
from xlr.evaluation.facts import EvaluationFacts, WinRates
from xlr.findings.found import (
    Certified,
    Change,
    Found,
    JudgedWinRates,
    ModelFound,
    OtherJudgement,
    Planned,
    preferences_of,
)
from xlr.findings.stopping import advise
from xlr.pipeline import Stage
from xlr.planning import planfile
from xlr.records import ModelKey
from xlr.run.directory import RunDir
from xlr.run.files import read_json
from xlr.run.manifests import json_of, read_manifest
from xlr.settings.config import Config
from xlr.settings.deciding import settings
from xlr.stages import STAGES

_FROM_MANIFEST = ("rows", "seconds", "processors", "finished", "digest", "facts", "tokens")


def collect(config: Config, directory: RunDir, name: str) -> Found:
    """Everything that the report shows of a run, as far as the run is finished.

    Args:
        name: how the report calls the run.
    """
    manifests = {str(model): _manifests(config, directory, model) for model in config.models}
    planned = _planned(directory)
    iterations = {
        str(model): _model(config, directory, model, manifests[str(model)], planned) for model in config.models
    }
    finished = [manifest for own in manifests.values() for manifest in own]
    found: Found = {
        "name": name,
        "languages": list(config.trained_languages),
        "evaluated": list(config.evaluated_languages),
        "names": {lang: config.language_name(lang) for lang in _mentioned(config, iterations)},
        "settings": settings(config),
        "versions": _versions(finished),
        "finished": max((manifest["finished"] for manifest in finished), default=""),
        "iterations": iterations,
        "changes": _changes(config, directory, iterations),
        "certificates": _certificates(config, directory),
        "advice": None,
    }
    return {**found, "advice": advise(found)}


def _mentioned(config: Config, iterations: Mapping[str, ModelFound]) -> Iterator[str]:
    """Every language of the run, of its answers, and of its held-out preferences."""
    yield from (*config.trained_languages, *config.evaluated_languages)
    for model in iterations.values():
        yield from preferences_of(model)


def _manifests(config: Config, directory: RunDir, model: ModelKey) -> list[Mapping[str, Any]]:
    """The manifests of one model's finished stages."""
    folders = dict.fromkeys(  # align and train make the same one
        directory.judged(model, kind.artefact, config.judge.folder)
        if kind.by_judge
        else directory.iteration(model) / kind.artefact
        for kind in STAGES
    )
    return [manifest for manifest in map(read_manifest, folders) if manifest]


def _versions(manifests: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Every library that a stage used, with its versions."""
    found: dict[str, list[str]] = {}
    for manifest in manifests:
        for library, version in manifest["versions"].items():
            if version and version not in found.setdefault(library, []):
                found[library].append(version)
    return found


def _planned(directory: RunDir) -> Mapping[str, Planned]:
    """What the run's last plan said of each stage; empty without a plan."""
    plan = planfile.read(directory.path)
    return {
        own["stage"]: {"seconds": own["seconds"], "memory": sum(own["memory"].values())}
        for own in (plan["stages"] if plan else ())
    }


def _model(
    config: Config,
    directory: RunDir,
    model: ModelKey,
    manifests: Sequence[Mapping[str, Any]],
    planned: Mapping[str, Planned],
) -> ModelFound:
    """What was found of one model."""
    folder = directory.iteration(model)
    judged = directory.judged(model, "judgements", config.judge.folder)
    stages = {
        manifest["stage"]: {
            **{key: manifest[key] for key in _FROM_MANIFEST},
            "memory": manifest.get("memory", 0),
            "planned": planned.get(str(Stage(manifest["stage"], model))),
        }
        for manifest in manifests
    }
    found_of = {
        "evaluation": json_of(folder / "eval", "eval.json", EvaluationFacts) if "evaluate" in stages else None,
        "judgements": _judgements(judged) if "judge" in stages else None,
        "other_judgements": list(_other_judgements(config, directory, model)),
        "stages": stages,
    }
    return cast("ModelFound", found_of)  # a stage's name decides the type of its facts, which mypy cannot follow


def _judgements(folder: Path) -> JudgedWinRates:
    """The win rates of one judge."""
    manifest = read_manifest(folder)
    assert manifest is not None
    rates = json_of(folder, "winrates.json", WinRates)
    return cast("JudgedWinRates", rates | {"judge": manifest["facts"]["judge"]})


def _other_judgements(config: Config, directory: RunDir, model: ModelKey) -> Iterator[OtherJudgement]:
    """What judges that the run had before found of the answers that the model has now."""
    own, answers = config.judge.folder, read_manifest(directory.iteration(model) / "eval")
    judged = {folder.name: folder for folder in directory.judges(model, "judgements")}
    for name, folder in judged.items():
        manifest = read_manifest(folder)
        if name != own and answers and manifest and manifest["inputs"]["answers"] == answers["digest"]:
            both = (annotations.read(judged[one] / "annotations") for one in (own, name))
            yield {**_judgements(folder), "agreement": winrates.agreement(*both) if own in judged else None}


def _certificates(config: Config, directory: RunDir) -> dict[str, Certified]:
    """The last certificate of each language: that of the latest iteration, and of the most prompts."""
    found: dict[str, Certified] = {}
    for iteration in config.trained_iterations:
        folder, pattern = directory.iteration(iteration), f"{prefix(config.at(iteration))}[0-9]*.manifest.json"
        finished = {path.name.removesuffix(".manifest.json") for path in folder.glob(pattern)}
        files = [path for name in sorted(finished) if (path := folder / f"{name}.json").is_file()]
        for one in sorted((read_json(path, Certificate) for path in files), key=_prompts):
            for lang, own in one["languages"].items():
                found[lang] = {"iteration": iteration, "verdict": own["verdict"], "tokens": own["tokens"]}
    return found


def _prompts(certificate: Certificate) -> int:
    return max(len(own["prompts"]) for own in certificate["languages"].values())


def _changes(config: Config, directory: RunDir, iterations: Mapping[str, ModelFound]) -> list[Change]:
    """Paired differences of win rates between judged iterations: from each to the next, and from the first to the last.

    They are slow to compute, so the last report's values are reused while its judgements are unchanged.
    """
    judged = [number for number in range(config.iterations + 1) if iterations[str(number)]["judgements"]]
    steps = list(pairwise(range(len(judged))))
    if len(judged) > 2:
        steps.append((0, len(judged) - 1))
    digests = [iterations[str(number)]["stages"]["judge"]["digest"] for number in judged]
    wanted = [{"from": str(judged[a]), "to": str(judged[b]), "digests": [digests[a], digests[b]]} for a, b in steps]
    known = _known_changes(directory.path / "report.json")
    if [{key: value for key, value in change.items() if key != "difference"} for change in known] == wanted:
        return known
    folders = [directory.judged(number, "judgements", config.judge.folder) for number in judged]
    files = [annotations.read(folder / "annotations") for folder in folders]
    table = difficulty.load(config.judge.difficulty)
    differences = winrates.changes(files, steps, table) if steps else []
    found = [own | {"difference": difference} for own, difference in zip(wanted, differences, strict=True)]
    return cast("list[Change]", found)


def _known_changes(report: Path) -> list[Change]:
    """The differences in the last report; none if there is no report, or if it is damaged and will be replaced."""
    try:
        last: Found = read_json(report, Found)
    except UserError:
        return []
    return last["changes"]
