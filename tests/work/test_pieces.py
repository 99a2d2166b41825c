"""Pieces of interrupted work are used again where they fit, and never mixed where they do not."""

import contextlib
import gc
import os
import signal
import subprocess
import sys
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.conftest import Cli, assert_refused
from tests.rows import read_rows
from tests.waiting import wait_until
from xlr.errors import UserError
from xlr.records import Example, ReferenceLogps, Response, Score, Scored, ScoreTask, Task
from xlr.run.artifact import Artifact
from xlr.run.files import read_json, write_json
from xlr.run.rows import require_each_once, write_rows
from xlr.settings.config import Config
from xlr.terminal.progress import Clock
from xlr.work import pieces
from xlr.work.logps import Scoring, resumable_logps
from xlr.work.pieces import resumable
from xlr.work.shards import Shard, Work, keys_digest, whole

Rows = list[ReferenceLogps]


class StoppedError(Exception):
    pass


@dataclass
class Workers:
    """A pool that scores an example by its token ids, and fails after some tasks."""

    precision: str = "float32"
    torch: str = "2.13.0"
    fail_after: int = 10**9
    computed: list[Any] = field(default_factory=list)
    workers: tuple[()] = ()

    def conditions(self, task: Task) -> dict[str, str]:
        return {"precision": self.precision, "version of torch": self.torch}

    def map(self, tasks: Iterable[tuple[tuple[str, int], ScoreTask]]) -> Iterator[tuple[tuple[str, int], Any]]:
        for key, task in reversed(list(tasks)):  # they finish in another order than they begin
            if len(self.computed) == self.fail_after:
                raise StoppedError
            self.computed.append(key[1])
            scores = [
                Scored(
                    [
                        tuple(-float(sum(response)) - len(model) for model in task.models)
                        for response in example.responses
                    ],
                    [],
                )
                for example in task.examples
            ]
            yield key, scores


def a_context(workers: Workers, **settings: Any) -> Any:
    tree = {
        "run_dir": "run",
        "languages": ["en"],
        "model": {"initial": "i", "aligned": "a"},
        "prompts": {"path": "p"},
        **settings,
    }
    return SimpleNamespace(config=Config.model_validate(tree), clock=Clock(), pool=workers)


def an_artifact(folder: Path, **settings: Any) -> Artifact:
    return Artifact(folder, folder / "scores", "score", settings, {})


def examples(count: int) -> list[Example]:
    return [Example((1, 2), ((3 + number, 9),)) for number in range(count)]


def compute(context: Any, target: Artifact, items: Sequence[Example]) -> Rows:
    keys = [[("en", str(number))] for number in range(len(items))]

    def to_rows(item: int, scored: Scored) -> Rows:
        ((policy, reference),) = scored.logps
        return [ReferenceLogps(str(item), "en", "", policy, reference)]

    shards = whole(Scoring(items, keys, to_rows), keys)
    models = ("policy", "ref")
    return resumable_logps(
        context, target, "parts", models, "auto", ReferenceLogps, shards, "score", "responses"
    ).rows()


def expected(items: Sequence[Example]) -> Rows:
    """A plain loop."""
    values = [-float(sum(item.responses[0])) for item in items]
    return [ReferenceLogps(str(i), "en", "", value - 6, value - 3) for i, value in enumerate(values)]


@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=15)
@given(count=st.integers(0, 6), budget=st.integers(1, 9), finished=st.integers(0, 6), one_model=st.booleans())
def test_interrupted_work_ends_with_the_rows_of_undisturbed_work(
    tmp_path_factory: pytest.TempPathFactory, count: int, budget: int, finished: int, one_model: bool
) -> None:
    target, items = an_artifact(tmp_path_factory.mktemp("work")), examples(count)
    how = {"score": {"batch_tokens": budget}, "ray": {"one_model_at_a_time": one_model}}
    first = Workers(fail_after=finished)
    with contextlib.suppress(StoppedError):
        compute(a_context(first, **how), target, items)
    second = Workers()
    assert compute(a_context(second, **how), target, items) == expected(items)
    third = Workers()
    assert compute(a_context(third, **how), target, items) == expected(items)
    assert not third.computed
    if not one_model:
        assert not set(first.computed) & set(second.computed)


def interrupted(target: Artifact, count: int = 6, **settings: Any) -> None:
    with pytest.raises(StoppedError):
        compute(a_context(Workers(fail_after=1), score={"batch_tokens": 6}, **settings), target, examples(count))


def test_another_budget_is_refused(tmp_path: Path) -> None:
    interrupted(an_artifact(tmp_path))
    workers = Workers()
    with pytest.raises(UserError) as refusal:
        compute(a_context(workers, score={"batch_tokens": 9}), an_artifact(tmp_path), examples(6))
    assert "divided into other batches (score.batch_tokens was 6 and is now 9)" in str(refusal.value)
    assert f"delete {tmp_path / 'scores.parts'} to start this stage again" in str(refusal.value)
    assert not workers.computed


def test_another_layout_is_refused(tmp_path: Path) -> None:
    """Padded rows cost more than packed ones, so the same budget divides the examples differently."""
    interrupted(an_artifact(tmp_path))
    model = {"initial": "i", "aligned": "a", "attn_implementation": "sdpa"}
    context = a_context(Workers(), score={"batch_tokens": 6}, model=model)
    items = [Example((1, 2), ((3, 9), (4, 9, 9)))] * 6
    with pytest.raises(UserError, match="divided into other batches"):
        compute(context, an_artifact(tmp_path), items)


def test_another_change_of_the_configuration_does_not_matter(tmp_path: Path) -> None:
    interrupted(an_artifact(tmp_path))
    context = a_context(Workers(), score={"batch_tokens": 6}, train={"beta": 0.5})
    assert compute(context, an_artifact(tmp_path), examples(6)) == expected(examples(6))


def test_other_items_are_refused(tmp_path: Path) -> None:
    interrupted(an_artifact(tmp_path))
    with pytest.raises(UserError, match=r"divided into other batches \(other rows\)"):
        compute(a_context(Workers(), score={"batch_tokens": 6}), an_artifact(tmp_path), examples(7))


def test_another_precision_is_refused(tmp_path: Path) -> None:
    interrupted(an_artifact(tmp_path))
    context = a_context(Workers(precision="bfloat16"), score={"batch_tokens": 6})
    with pytest.raises(UserError, match="precision was 'float32' and is now 'bfloat16'"):
        compute(context, an_artifact(tmp_path), examples(6))


def test_another_version_of_a_library_is_refused(tmp_path: Path) -> None:
    interrupted(an_artifact(tmp_path))
    context = a_context(Workers(torch="9.9"), score={"batch_tokens": 6})
    with pytest.raises(
        UserError, match=r"version of torch was '2.13.0' and is now '9.9'. Continue .* --accept version"
    ):
        compute(context, an_artifact(tmp_path), examples(6))


def test_another_version_is_continued_if_the_user_accepts_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = an_artifact(tmp_path)
    interrupted(target)
    target.accept(["version"])
    workers = Workers(torch="9.9")
    context = a_context(workers, score={"batch_tokens": 6})
    assert compute(context, an_artifact(tmp_path), examples(6)) == expected(examples(6))
    assert workers.computed == [1, 0]  # the third piece was kept
    assert "parts: continued although version of torch was '2.13.0' and is now '9.9'" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"torch was '9.9' and is now '2.13.0'"):  # accepted once, not for ever
        compute(a_context(Workers(), score={"batch_tokens": 6}), an_artifact(tmp_path), examples(6))
    target.folder.mkdir()
    target.finish(6, {}, Clock())
    manifest = target.manifest()
    assert manifest is not None
    assert manifest["accepted"] == ["version of torch was '2.13.0' and is now '9.9'"]
    assert manifest["conditions"]["scores.parts"]["version of torch"] == "9.9"


def test_another_precision_is_refused_whatever_the_user_accepts(tmp_path: Path) -> None:
    target = an_artifact(tmp_path)
    interrupted(target)
    target.accept(["version", "device"])
    context = a_context(Workers(precision="bfloat16"), score={"batch_tokens": 6})
    with pytest.raises(UserError, match=r"precision was 'float32' and is now 'bfloat16'. Set it back"):
        compute(context, an_artifact(tmp_path), examples(6))


def test_pieces_of_an_earlier_xlr_are_refused(tmp_path: Path) -> None:
    interrupted(an_artifact(tmp_path))
    plan = tmp_path / "scores.parts" / "plan.json"
    recorded = read_json(plan)
    write_json(plan, {"settings": recorded["settings"], "inputs": recorded["inputs"]})
    with pytest.raises(UserError, match=r"damaged \(conditions: Field required\); delete .* to start this stage"):
        compute(a_context(Workers(), score={"batch_tokens": 6}), an_artifact(tmp_path), examples(6))


def test_other_settings_of_the_artefact_are_refused(tmp_path: Path) -> None:
    interrupted(an_artifact(tmp_path, reward="crosslingual"))
    context = a_context(Workers(), score={"batch_tokens": 6})
    with pytest.raises(UserError, match="reward was 'crosslingual' and is now 'multilingual'"):
        compute(context, an_artifact(tmp_path, reward="multilingual"), examples(6))


def spoil_torn(piece: Path) -> None:
    piece.write_bytes(piece.read_bytes()[:40])


def spoil_unstamped(piece: Path) -> None:
    write_rows(piece, ReferenceLogps, read_rows(piece, ReferenceLogps))


def spoil_of_another_number(piece: Path) -> None:
    others = [file for file in piece.parent.glob("*.parquet") if file != piece]
    piece.write_bytes(others[0].read_bytes())


@pytest.mark.parametrize("spoil", [spoil_torn, spoil_unstamped, spoil_of_another_number])
def test_a_piece_that_does_not_prove_what_it_is_is_computed_again(
    spoil: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target, items = an_artifact(tmp_path), examples(6)
    with pytest.raises(StoppedError):
        compute(a_context(Workers(fail_after=2), score={"batch_tokens": 6}), target, items)
    spoil(tmp_path / "scores.parts" / "all" / "000001.parquet")
    workers = Workers()
    assert compute(a_context(workers, score={"batch_tokens": 6}), target, items) == expected(items)
    assert workers.computed == [1, 0]
    assert "1 pieces are damaged or come from another run; they are computed again" in capsys.readouterr().out


@pytest.mark.parametrize("spoil", [spoil_torn, spoil_unstamped])
def test_a_finished_shard_that_does_not_prove_what_it_is_is_computed_again(spoil: Any, tmp_path: Path) -> None:
    target, items = an_artifact(tmp_path), examples(6)
    compute(a_context(Workers(), score={"batch_tokens": 6}), target, items)
    assert [file.name for file in (tmp_path / "scores.parts").iterdir() if file.suffix != ".json"] == ["all.parquet"]
    spoil(tmp_path / "scores.parts" / "all.parquet")
    workers = Workers()
    assert compute(a_context(workers, score={"batch_tokens": 6}), target, items) == expected(items)
    assert workers.computed == [2, 1, 0]


def test_a_lost_plan_does_not_let_foreign_pieces_in(tmp_path: Path) -> None:
    interrupted(an_artifact(tmp_path))
    (tmp_path / "scores.parts" / "plan.json").unlink()
    workers = Workers()
    items = examples(7)
    assert compute(a_context(workers, score={"batch_tokens": 6}), an_artifact(tmp_path), items) == expected(items)
    assert sorted(workers.computed) == list(range(len(workers.computed)))


def shard_of(name: str, items: Sequence[int], batches: Sequence[list[int]], per_item: int = 1) -> Shard[Work[Any]]:
    """Items with the given number of rows each; a row says its item and its number within it."""

    def keys(item: int) -> list[tuple[str, ...]]:
        return [("en", str(item), str(number)) for number in range(per_item)]

    work = Work(
        keys,
        batches,
        lambda batch: ScoreTask(("m",), tuple(examples(len(batch))), "auto"),
        lambda batch, result: [ReferenceLogps(str(i), "en", str(n), 0.0, 0.0) for i in batch for n in range(per_item)],
        lambda batch, _: 0,
    )
    rows = Counter({"en": len(items) * per_item})
    return Shard(name, keys_digest(map(keys, items)), rows, lambda: work)


def resumed(shards: Sequence[Shard[Work[Any]]], folder: Path, workers: Workers | None = None) -> Any:
    like = ScoreTask(("m",), (), "auto")
    context, target = a_context(workers or Workers()), an_artifact(folder)
    return resumable(context, target, "parts", ReferenceLogps, like, shards, "score", "responses")


def test_a_piece_with_too_few_rows_ends_the_stage(tmp_path: Path) -> None:
    shard = shard_of("all", range(2), [[0, 1]], per_item=2)
    short = shard.replanned(lambda work: replace(work, to_rows=lambda batch, result: work.to_rows(batch[:1], result)))
    with pytest.raises(RuntimeError, match="2 rows instead of 4"):
        resumed([short], tmp_path)


@pytest.mark.parametrize(("rows", "times"), [(["a"], 0), (["a", "b", "b"], 2), (["a", "b", "c"], 1)])
def test_rows_are_counted_by_key_before_an_artefact_is_finished(rows: list[str], times: int, tmp_path: Path) -> None:
    write_rows(tmp_path / "x.parquet", ReferenceLogps, [ReferenceLogps(one, "en", "", 0.0, 0.0) for one in rows])
    with pytest.raises(RuntimeError, match=rf"holds the row en [bc] {times} times"):
        require_each_once(tmp_path, [("en", "a"), ("en", "b")], ("lang", "id"))
    require_each_once(tmp_path, [("en", one) for one in rows], ("lang", "id"))


@pytest.fixture(scope="module")
def sampled(tiny_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with sampled responses."""
    import yaml

    from tests.conftest import tiny_tree

    folder = tmp_path_factory.mktemp("sampled")
    tree = tiny_tree.__wrapped__(tiny_models, folder)  # type: ignore[attr-defined]
    tree |= {"score": {"batch_tokens": 128}, "languages": ["en", "es", "fr"]}
    tree["prompts"]["limit"] = 8
    (folder / "run.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    subprocess.run([sys.executable, "-m", "xlr", "generate", str(folder / "run.yaml")], check=True, capture_output=True)
    return folder / "run"


def interrupt_scoring(run: Path) -> None:
    """`kill -9` after the first pieces."""
    process = subprocess.Popen([sys.executable, "-m", "xlr", "score", str(run)], stdout=subprocess.DEVNULL)
    wait_until(lambda: len(list(run.glob("iter1/scores.parts/**/*.parquet"))) > 2, "three pieces")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (run / "iter1" / "scores.manifest.json").exists()


def test_scoring_is_not_continued_under_another_attention(sampled: Path, cli_here: Cli) -> None:
    """Pieces used to be found by number: rows were doubled and lost, and the exit code was 0."""
    interrupt_scoring(sampled)
    refused = cli_here("score", sampled, "model.attn_implementation=sdpa")
    assert_refused(refused, "model.attn_implementation was 'xlr_shared_prompt' and is now 'sdpa'")
    continued = cli_here("score", sampled, "model.attn_implementation=xlr_shared_prompt")
    assert continued.returncode == 0, continued.stderr
    responses = read_rows(sampled / "iter1" / "responses", Response)
    scores = read_rows(sampled / "iter1" / "scores", Score)
    filled = [row for row in responses if row.response.strip()]
    assert sorted((row.lang, row.id, row.sample) for row in scores) == sorted(
        (row.lang, row.id, row.sample) for row in filled
    )


@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=15)
@given(data=st.data(), per_item=st.integers(1, 3))
def test_shards_are_read_in_the_order_of_their_items(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, per_item: int
) -> None:
    """Whatever the order of the batches, and wherever the work was interrupted."""
    folder = tmp_path_factory.mktemp("work")
    blocks = {"a": range(5), "b": range(5, 9)}
    shards = []
    for name, block in blocks.items():
        order = data.draw(st.permutations(list(block)))
        cut = data.draw(st.integers(1, len(order) - 1))
        shard = shard_of(name, block, [order[:cut], order[cut:]], per_item)
        shards.append(replace(shard, rank=data.draw(st.integers(0, 1))))
    with contextlib.suppress(StoppedError):
        resumed(shards, folder, Workers(fail_after=data.draw(st.integers(0, 4))))
    found = resumed(shards, folder)
    for name, block in blocks.items():
        expected = [(str(item), str(number)) for item in block for number in range(per_item)]
        assert [(row.id, row.key) for row in found.rows(name)] == expected
    assert found.rows() == found.rows("a") + found.rows("b")
    again = Workers()
    resumed(shards, folder, again)
    assert not again.computed


def test_memory_holds_few_shards_whatever_their_number(tmp_path: Path) -> None:
    """They are planned in turn, and their plans are forgotten once they are written."""
    alive: weakref.WeakSet[Work[Any]] = weakref.WeakSet()
    most = 0

    def plan(name: str) -> Work[Any]:
        nonlocal most
        work = shard_of(name, range(2), [[0], [1]]).plan()
        alive.add(work)
        gc.collect()
        most = max(most, len(alive))
        return work

    class InTurn(Workers):
        def map(self, tasks: Any) -> Iterator[Any]:
            for key, _ in tasks:
                yield key, None

    shards = [replace(shard_of(f"s{number}", range(2), []), plan=partial(plan, f"s{number}")) for number in range(40)]
    found = resumed(shards, tmp_path, InTurn())
    assert len(found.rows()) == 80
    assert most <= 20  # the backlog of unwritten pieces, and those that are planned ahead


def test_a_shard_that_is_damaged_after_it_was_written_is_refused(tmp_path: Path) -> None:
    found = resumed([shard_of("all", range(2), [[0], [1]])], tmp_path)
    spoil_torn(found.files["all"])
    with pytest.raises(UserError, match=r"all\.parquet: damaged since it was written; start again"):
        found.rows()


def test_pieces_are_on_disk_although_a_worker_fails(tmp_path: Path) -> None:
    """Threads write them; the stage ends when they have."""
    with pytest.raises(StoppedError):
        compute(a_context(Workers(fail_after=3), score={"batch_tokens": 3}), an_artifact(tmp_path), examples(6))
    assert len(list((tmp_path / "scores.parts" / "all").glob("*.parquet"))) == 3


def test_a_piece_that_cannot_be_written_ends_the_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_arguments: Any) -> None:
        raise UserError("no space left on device")

    monkeypatch.setattr(pieces, "write_rows", full)
    with pytest.raises(UserError, match="no space left"):
        compute(a_context(Workers(), score={"batch_tokens": 3}), an_artifact(tmp_path), examples(6))


def test_the_time_of_a_stage_is_that_of_all_its_steps() -> None:
    worker = SimpleNamespace(load_seconds=1.0, compute_seconds=3.0, peak_memory=7, lost=False, cpus=1, gpus=0)
    context: Any = SimpleNamespace(pool=SimpleNamespace(workers=[worker]), clock=Clock())
    for seconds in (5.0, 4.5):
        pieces._count_workers(context, seconds)
    assert context.clock.seconds == {"load": 2.0, "compute": 6.0, "wait": 1.5}
