"""Manifests record the settings and inputs of an artefact, and differences are refused."""

import os
from array import array
from dataclasses import replace
from pathlib import Path

import pytest

from xlr.errors import UserError
from xlr.records import Response
from xlr.run import digests
from xlr.run.artifact import Artifact, fingerprint
from xlr.run.files import read_json, write_json
from xlr.run.manifests import manifest_path, read_manifest, rows_of, verified
from xlr.run.rows import write_rows
from xlr.terminal.progress import Clock

SETTINGS = {"seed": 1, "top_p": 0.9}
ROWS = [Response(f"q{i}", "es", i, f"¿Qué? {i} 你好", array("I", [i, i + 1]), "stop") for i in range(5)]


def make_artifact(tmp_path: Path) -> Artifact:
    tmp_path.mkdir(parents=True, exist_ok=True)
    source = tmp_path / "input.jsonl"
    source.write_text("{}\n")
    artifact = Artifact(
        tmp_path / "run", tmp_path / "run" / "iter1" / "responses", "generate", SETTINGS, {"prompts": source}
    )
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
    del manifest["seal"]
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
    stamps = {artifact.claim_pieces(name, {"cut": cut}, {})[0] for name, cut in (("a", "x"), ("b", "x"), ("c", "y"))}
    assert len(stamps) == 2


def test_a_finished_artefact_is_identified_by_content_and_not_by_time(tmp_path: Path) -> None:
    first, second = make_artifact(tmp_path / "a" / "x"), make_artifact(tmp_path / "b" / "x")
    first.finish(5, {}, Clock())
    second.finish(5, {}, Clock())
    assert fingerprint(first.folder) == fingerprint(second.folder)


def test_any_changed_byte_of_a_model_changes_its_fingerprint(tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    weights.write_bytes(bytes(3 << 20))
    before = fingerprint(tmp_path)
    (tmp_path / ".hidden").write_text("not of the model")
    assert fingerprint(tmp_path) == before
    with weights.open("r+b") as file:
        file.seek(3 << 19)
        file.write(b"x")
    assert fingerprint(tmp_path) != before


def finished(tmp_path: Path, name: str, inputs: dict[str, str | Path], text: str) -> Artifact:
    artifact = Artifact(tmp_path, tmp_path / "iter1" / name, "pair", {}, inputs)
    artifact.folder.mkdir(parents=True, exist_ok=True)
    (artifact.folder / "file").write_text(text)
    artifact.finish(1, {}, Clock())
    return artifact


def test_making_an_input_again_with_the_same_content_does_not_cost_what_follows(tmp_path: Path) -> None:
    scores = finished(tmp_path, "scores", {}, "x")
    pairs = finished(tmp_path, "pairs", {"scores": scores.folder}, "y")
    assert replace(pairs).manifest() is not None
    manifest_path(scores.folder).unlink()
    assert replace(pairs).manifest() is None  # not known to be current, and not refused
    finished(tmp_path, "scores", {}, "x")
    assert replace(pairs).manifest() is not None
    finished(tmp_path, "scores", {}, "z")
    with pytest.raises(UserError, match=r"scores \(.*\) has changed since\. .* delete .*pairs\.manifest\.json"):
        replace(pairs).manifest()


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_finished_artefact_is_not_read_once_a_bit_has_changed(tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path)
    artifact.finish(5, {}, Clock())
    assert rows_of(artifact.folder, Response) == ROWS
    flip(artifact.folder / "es-00000.parquet")
    with pytest.raises(UserError, match=r"es-00000\.parquet: has changed since it was written \(another SHA-256\)"):
        rows_of(artifact.folder, Response)


def test_only_the_files_of_the_manifest_are_read(tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path)
    artifact.finish(5, {}, Clock())
    write_rows(artifact.folder / "es-00001.parquet", Response, ROWS)
    assert rows_of(artifact.folder, Response) == ROWS
    assert rows_of(artifact.folder, Response, "ru-*") == []
    with pytest.raises(UserError, match=r"es-00001\.parquet: is not a file of this artefact"):
        verified(artifact.folder, exact=True)


def test_a_manifest_with_a_changed_bit_is_refused_wherever_it_is(tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path)
    artifact.finish(5, {"pairs": 3}, Clock())
    path = manifest_path(artifact.folder)
    whole = path.read_bytes()
    before = read_manifest(artifact.folder)
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        try:
            assert read_manifest(artifact.folder) == before  # white space
        except UserError as error:
            message = str(error)
        else:
            continue
        assert message.startswith(f"{path}: ")
        assert "delete it" in message


def test_the_digest_of_a_large_file_is_remembered_until_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(digests, "_SETTLED_SECONDS", 0)
    reads: list[Path] = []
    read = digests._read
    monkeypatch.setattr(digests, "_read", lambda path: reads.append(path) or read(path))
    large = tmp_path / "large"
    large.write_bytes(bytes(1 << 20))
    first = digests.file_digest(large)
    assert digests.file_digest(large) == first
    assert len(reads) == 1
    assert digests.file_digest(large, fresh=True) == first
    assert len(reads) == 2
    status = large.stat()
    flip(large)
    os.utime(large, ns=(status.st_atime_ns, status.st_mtime_ns))  # as rsync or a restored backup would
    assert digests.file_digest(large) != first
    (note,) = (tmp_path / "cache" / "xlr" / "digests").iterdir()
    note.write_text("{}")
    assert digests.file_digest(large) == read(large)


def test_tidying_removes_incomplete_files_of_this_artefact_only(tmp_path: Path) -> None:
    ours = Artifact(tmp_path, tmp_path / "scores", "score", {}, {})
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
