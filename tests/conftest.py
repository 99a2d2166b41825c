"""Shared fixtures: tiny models, run configurations, and skipping or failing if a real dependency is missing."""

import contextlib
import importlib
import io
import os
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from xlr.shipped import RECIPES

# Small machines have two cores, which two ranks or two test processes share.
os.environ["OMP_NUM_THREADS"] = "1"
# xlr compiles nothing with torch. DeepSpeed decorates functions for it, which would take each rank a second.
os.environ["TORCHDYNAMO_DISABLE"] = "1"
# Without a GPU, Triton interprets kernels. It reads this when it is imported.
if not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = "1"

# Begins a command that ends on SIGINT, also where the tests run in a shell's background, which has it ignored.
INTERRUPTIBLE = ("env", "--default-signal=INT")
REQUIRE_REAL = os.environ.get("XLR_REQUIRE_REAL") == "1"
SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"


# Files of long tests start first, so that two processes end at about the same time.
RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK")  # a rank in this process sets them; commands must not become ranks
LONGEST = [
    "test_loop.py",
    "test_slurm.py",
    "test_run.py",
    "test_crashes.py",
    "test_sweep.py",
    "test_real_model.py",
    "test_raycluster.py",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first; the order within files stays."""
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(LONGEST)))


@pytest.fixture(autouse=True)
def _same_environment() -> Iterator[None]:
    """Restore environment variables and umask after each test: they are set for the whole process."""
    before, umask = dict(os.environ), os.umask(0o022)
    os.umask(umask)
    yield
    os.umask(umask)
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ |= before


@pytest.fixture
def same_signals() -> Iterator[None]:
    """Restore the signal handlers, which `xlr.commands.cli.main` sets, after the test."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def missing(reason: str) -> None:
    """Skip a test whose dependency is missing, or fail it if XLR_REQUIRE_REAL=1."""
    if REQUIRE_REAL:
        pytest.fail(f"{reason} (XLR_REQUIRE_REAL=1)")
    pytest.skip(reason)


def required(name: str) -> Any:
    """Import an optional package, or skip the test (fail it if XLR_REQUIRE_REAL=1)."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return missing(f"{name} is not installed")


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of two tiny Llamas: `initial` (pi_I) and `aligned` (pi^0)."""
    from tests import tiny

    folder = tmp_path_factory.mktemp("models")
    initial = tiny.save(folder / "initial", seed=1)
    start = tiny.make_model(len(tiny.make_tokenizer("qwen")), seed=1)
    aligned = tiny.save(folder / "aligned", seed=2, start=start)
    return {"initial": initial, "aligned": aligned}


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """Folder of the real small model, which `make model` downloads."""
    folder = Path(__file__).parents[1] / "models" / "smollm2-135m-instruct"
    if not (folder / "model.safetensors").is_file():
        missing(f"{folder} is not there; run `make model`")
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real prompts beside the checkout."""
    if not SHARED_DATA.is_dir():
        missing("../shared/data is not there")
    return SHARED_DATA


@pytest.fixture
def tiny_tree(tiny_models: dict[str, Path], tmp_path: Path) -> dict[str, Any]:
    """A configuration that runs every stage in seconds."""
    return {
        "run_dir": str(tmp_path / "run"),
        "iterations": 1,
        "languages": ["en", "es"],
        "model": {name: str(path) for name, path in tiny_models.items()},
        "prompts": {"path": str(RECIPES / "quickstart" / "prompts"), "limit": 4},
        "generate": {"num_samples": 3, "max_new_tokens": 12, "batch_size": 8},
        "score": {"batch_tokens": 512},
        "ray": {"actors": 1},  # a worker's imports take most of a tiny run's time
        "train": {
            "learning_rate": 1e-3,
            "global_batch_size": 4,
            "micro_batch_tokens": 400,
            "ds_config": "zero3_cpu",
            "reference_ds_config": "reference_cpu",
        },
        "evaluate": {
            "prompts": {"path": str(RECIPES / "quickstart" / "heldout"), "limit": 2},
            "preferences": str(_few_preferences(tmp_path / "preferences")),
            "max_new_tokens": 12,
        },
    }


def _few_preferences(folder: Path) -> Path:
    """The first preferences of the quickstart in English and Spanish."""
    folder.mkdir()
    for lang in ("en", "es"):
        rows = (RECIPES / "quickstart" / "preferences_heldout" / f"{lang}.jsonl").read_text(encoding="utf-8")
        (folder / f"{lang}.jsonl").write_text("".join(rows.splitlines(True)[:4]), encoding="utf-8")
    return folder


def assert_refused(result: Any, message: str) -> None:
    """Assert that a command refused bad input: exit code 2, one error that contains `message`, no traceback."""
    assert result.returncode == 2, result.stdout + result.stderr
    assert message in result.stderr
    assert result.stderr.count("error: ") == 1
    assert "Traceback" not in result.stderr


RAY_TOKEN = secrets.token_hex(32)  # Ray keeps the first token of a process
Cli = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def cli() -> Cli:
    """Run `xlr` in a new process, as a user would."""

    def run(*arguments: object, cwd: Path | None = None, **environment: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "xlr", *map(str, arguments)],
            cwd=cwd,
            env={name: value for name, value in os.environ.items() if name not in RANKS} | environment,
            capture_output=True,
            text=True,
            timeout=600,
        )

    return run


@pytest.fixture
def cli_here(same_signals: None, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Like `cli`, but in this process: for commands that start nothing, which in a new process would mostly import."""
    from xlr.commands import cli as module
    from xlr.terminal.console import console

    def run(*arguments: object, cwd: Path | None = None, **environment: str) -> "subprocess.CompletedProcess[str]":
        command = ["xlr", *map(str, arguments)]
        out, err, mask = io.StringIO(), io.StringIO(), os.umask(0o077)
        with monkeypatch.context() as patched, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            patched.setattr(sys, "argv", command)
            patched.setattr(console, "stderr", console.stderr)
            for name in RANKS:
                patched.delenv(name, raising=False)
            for name, value in ({"RAY_AUTH_TOKEN": RAY_TOKEN} | environment).items():
                patched.setenv(name, value)
            if cwd is not None:
                patched.chdir(cwd)
            try:
                code: Any = module.main()
            except SystemExit as ended:
                code = ended.code
            finally:
                os.umask(mask)
        return subprocess.CompletedProcess(command, code or 0, out.getvalue(), err.getvalue())

    return run


@pytest.fixture
def write_config(tmp_path: Path) -> Callable[[dict[str, Any]], Path]:
    """Write a configuration tree to a file."""

    def write(tree: dict[str, Any]) -> Path:
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump(tree), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Debian's Chromium, headless."""
    chromium = shutil.which("chromium") or missing("chromium is not installed (Debian's package of that name)")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing("playwright is not installed")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=str(chromium), args=["--no-sandbox"])
        yield opened
        opened.close()


def violations(page: Any) -> list[tuple[str, str]]:
    """Violations of the accessibility rules: rule and element."""
    import axe_playwright_python

    page.evaluate((Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text(encoding="utf-8"))
    found = page.evaluate("axe.run({runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa']})")
    assert found["passes"]
    return [(one["id"], one["nodes"][0]["html"]) for one in found["violations"]]
