"""Manifests record the settings and inputs of an artefact, and differences are refused."""

from dataclasses import replace
from pathlib import Path

import pytest

from xlr.errors import UserError
from xlr.progress import Clock
from xlr.records import Response
from xlr.run.artifact import Artifact, fingerprint, manifest_path
from xlr.run.files import read_json, write_json
from xlr.run.rows import write_rows

ROWS = [Response(f"q{i}", "es", i, f"¿Qué? {i} 你好", [i, i + 1], "stop") for i in range(5)]


def make_artifact(tmp_path: Path) -> Artifact:
    tmp_path.mkdir(parents=True, exist_ok=True)
    source = tmp_path / "input.jsonl"
    source.write_text("{}\n")
    artifact = Artifact(tmp_path / "iter1" / "responses", "generate", {"seed": 1, "top_p": 0.9}, {"prompts": source})
    artifact.folder.mkdir(parents=True, exist_ok=True)
    write_rows(artifact.folder / "es-00000.parquet", Response, ROWS)
    return artifact


def test_an_artefact_is_finished_only_with_its_manifest_and_all_files(tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path)
    assert artifact.manifest() is None
    artifact.finish(5, {}, Clock())
    manifest = make_artifact(tmp_path).manifest()
    assert manifest is not None
    assert manifest["rows"] == 5
    (artifact.folder / "es-00000.parquet").unlink()
    assert artifact.manifest() is None


def test_a_manifest_of_an_earlier_xlr_is_refused(tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path)
    artifact.finish(5, {}, Clock())
    manifest = read_json(manifest_path(artifact.folder))
    del manifest["tokens"]
    write_json(manifest_path(artifact.folder), manifest)
    with pytest.raises(UserError, match="written by another version of xlr"):
        artifact.manifest()


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path)
    artifact.finish(5, {}, Clock())
    other = replace(artifact, settings={"seed": 1, "top_p": 0.8})
    with pytest.raises(UserError, match=r"top_p was 0\.9 and is now 0\.8"):
        other.manifest()


def test_a_changed_input_is_refused_by_name(tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path)
    artifact.finish(5, {}, Clock())
    (tmp_path / "input.jsonl").write_text("{} \n")
    with pytest.raises(UserError, match=r"prompts .*input\.jsonl.* has changed"):
        replace(artifact).manifest()


def test_pieces_of_other_settings_are_refused(tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path)
    first = artifact.claim_pieces("parts", {"cut": "x"}, {})
    assert artifact.claim_pieces("parts", {"cut": "x"}, {"seed": 3}) == first
    with pytest.raises(UserError, match="seed was 1 and is now 2"):
        replace(artifact, settings={"seed": 2, "top_p": 0.9}).claim_pieces("parts", {"cut": "x"}, {})


def test_another_condition_gives_another_stamp(tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path)
    stamps = {artifact.claim_pieces(name, {"cut": cut}, {}) for name, cut in (("a", "x"), ("b", "x"), ("c", "y"))}
    assert len(stamps) == 2


def test_a_finished_artefact_is_identified_by_content_and_not_by_time(tmp_path: Path) -> None:
    first, second = make_artifact(tmp_path / "a" / "x"), make_artifact(tmp_path / "b" / "x")
    first.finish(5, {}, Clock())
    second.finish(5, {}, Clock())
    assert fingerprint(first.folder) == fingerprint(second.folder)


def test_a_folder_s_fingerprint_covers_small_files_and_both_ends_of_large_ones(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(bytes(3 << 20))
    before = fingerprint(tmp_path)
    with (tmp_path / "weights").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"x")
    assert fingerprint(tmp_path) != before


def test_tidying_removes_incomplete_files_of_this_artefact_only(tmp_path: Path) -> None:
    ours = Artifact(tmp_path / "scores", "score", {}, {})
    ours.claim_pieces("parts", {"cut": ""}, {})
    pieces = ours.pieces_folder("parts")
    left = [
        tmp_path / ".scores.1a.tmp",
        tmp_path / ".scores.manifest.json.2b.tmp",
        pieces / ".000001.3c.tmp",
    ]
    kept = [tmp_path / ".eval.4d.tmp", pieces / "000001.parquet"]
    for path in (*left, *kept):
        path.write_text("")
    ours.tidy(finished=False)
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in kept)
    ours.tidy(finished=True)
    assert not ours.pieces_folder("parts").exists()
