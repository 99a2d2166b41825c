"""A run directory: whole files or none, and manifests that know what an artefact was made of."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from xlr.errors import UserError
from xlr.progress import Clock
from xlr.records import Pair, Response
from xlr.run import artifact as store
from xlr.run.artifact import Artifact

ROWS = [Response(f"q{i}", "es", i, f"¿Qué? {i} 你好", [i, i + 1], "stop") for i in range(5)]


def make_artifact(tmp_path: Path) -> Artifact:
    tmp_path.mkdir(parents=True, exist_ok=True)
    source = tmp_path / "input.jsonl"
    source.write_text("{}\n")
    artifact = Artifact(tmp_path / "iter1" / "responses", "generate", {"seed": 1, "top_p": 0.9}, {"prompts": source})
    artifact.folder.mkdir(parents=True, exist_ok=True)
    store.write_rows(artifact.folder / "es-00000.parquet", Response, ROWS)
    return artifact


def test_rows_survive_a_round_trip(tmp_path: Path) -> None:
    store.write_shards(tmp_path, "es", Response, ROWS)
    assert store.read_rows(tmp_path, Response) == ROWS
    pair = Pair("a", "es", [{"role": "user", "content": "x"}], [{"role": "assistant", "content": "y"}], [], 1.5, -1.0)
    store.write_rows(tmp_path / "pair", Pair, [pair])
    assert store.read_rows(tmp_path / "pair", Pair) == [pair]


def test_shards_are_cut_and_read_back_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "ROWS_PER_SHARD", 2)
    store.write_shards(tmp_path, "es", Response, ROWS)
    assert len(list(tmp_path.glob("*.parquet"))) == 3
    assert store.read_rows(tmp_path, Response) == ROWS


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "file"
    store.write_text(target, "old")

    def write_half() -> None:
        with store.atomic_path(target) as temporary:
            temporary.write_text("ne")
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        write_half()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert target.read_text() == "old"


def test_a_token_id_that_stands_in_many_rows_is_one_object(tmp_path: Path) -> None:
    rows = [replace(row, token_ids=[40_000, 40_000 + row.sample]) for row in ROWS]
    store.write_shards(tmp_path, "es", Response, rows[:2])
    store.write_shards(tmp_path, "ru", Response, rows[2:])
    read = store.read_rows(tmp_path, Response)
    assert read == rows
    assert len({id(row.token_ids[0]) for row in read}) == 1


def test_an_artefact_is_done_only_with_its_manifest_and_all_its_files(tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path)
    assert artifact.manifest() is None
    artifact.finish(5, {}, Clock())
    manifest = make_artifact(tmp_path).manifest()
    assert manifest is not None
    assert manifest["rows"] == 5
    (artifact.folder / "es-00000.parquet").unlink()
    assert artifact.manifest() is None


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


def test_pieces_of_another_plan_are_refused(tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path)
    artifact.parts()
    artifact.parts()
    with pytest.raises(UserError, match="seed was 1 and is now 2"):
        replace(artifact, settings={"seed": 2, "top_p": 0.9}).parts()


def test_a_finished_artefact_is_identified_by_content_and_not_by_time(tmp_path: Path) -> None:
    first, second = make_artifact(tmp_path / "a" / "x"), make_artifact(tmp_path / "b" / "x")
    first.finish(5, {}, Clock())
    second.finish(5, {}, Clock())
    assert store.fingerprint(first.folder) == store.fingerprint(second.folder)


def test_the_fingerprint_of_a_folder_sees_every_small_file_and_both_ends_of_large_ones(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(bytes(3 << 20))
    before = store.fingerprint(tmp_path)
    with (tmp_path / "weights").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"x")
    assert store.fingerprint(tmp_path) != before


def test_tidying_takes_what_is_half_written_and_nothing_of_another_artefact(tmp_path: Path) -> None:
    ours = store.Artifact(tmp_path / "scores", "score", {}, {})
    left = [tmp_path / ".scores.1a.tmp", tmp_path / ".scores.manifest.json.2b.tmp", ours.parts() / ".000001.3c.tmp"]
    kept = [tmp_path / ".eval.4d.tmp", ours.parts() / "000001.parquet"]
    for path in (*left, *kept):
        path.write_text("")
    ours.tidy(finished=False)
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in kept)
    ours.tidy(finished=True)
    assert not ours.parts_folder("parts").exists()


def test_a_run_directory_is_the_owner_s_alone(tmp_path: Path) -> None:
    run = store.RunDir(tmp_path / "run")
    run.create()
    assert run.path.stat().st_mode & 0o077 == 0


FILL = """
import sys
from pathlib import Path
from xlr.errors import UserError
from xlr.progress import Clock
from xlr.records import Logp
from xlr.run.rows import write_rows
try:
    write_rows(Path(sys.argv[1]) / "rows.parquet", Logp, [Logp(float(number)) for number in range(100_000)])
except UserError as error:
    print(error, sorted(Path(sys.argv[1]).iterdir()))
"""


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    """A file system of 64 kB, which only root may mount."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    mounted = f'mount -t tmpfs -o size=64k tmpfs {tmp_path} && exec "$@"'
    command = ["unshare", "--mount", "sh", "-c", mounted, "-", sys.executable, "-c", FILL, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "rows.parquet: cannot be written, no space left on device; make room and start again" in result.stdout
    assert result.stdout.rstrip().endswith("[]")
