"""The wheel holds every file that xlr needs, names its extras, and works from any folder once it is installed.

Nothing is downloaded: the environment that it is installed in sees the libraries of this one.
"""

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import xlr
from tests.conftest import missing
from xlr.jobs.graph import ARRAY

ROOT = Path(__file__).parents[1]
BESIDE = ("ds_configs", "ray_jobs", "slurm")
NOT_SHIPPED = shutil.ignore_patterns(
    *(".venv*", ".git", "models", "runs", "site", "build", "*.egg-info", "__pycache__", "*_cache")
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel, built from a copy of the checkout."""
    if lacking := [name for name in ("pip", "setuptools") if importlib.util.find_spec(name) is None]:
        missing(f"{' and '.join(lacking)} are not installed")
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, folder / "source", ignore=NOT_SHIPPED)
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    subprocess.run([*build, "-w", str(folder), str(folder / "source")], check=True, capture_output=True)
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return Parser().parsestr(archive.read(name).decode())


@pytest.fixture(scope="module")
def environment(wheel: Path) -> Path:
    """A new virtual environment with the wheel, which finds its libraries in this environment."""
    folder = wheel.parent / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", "--quiet"]
    subprocess.run([*install, str(wheel)], check=True, capture_output=True)
    ask = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    site = Path(subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip())
    (site / "libraries.pth").write_text(f"{sysconfig.get_path('purelib')}\n", encoding="utf-8")
    return folder


def installed(environment: Path, folder: Path, program: str, *arguments: object) -> str:
    """What a program of the environment prints, run in a folder that is no checkout."""
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(
        [str(environment / "bin" / program), *map(str, arguments)],
        cwd=folder,
        env=variables | {"PYTHONSAFEPATH": "1", "HOME": str(folder), "PYTHONUTF8": "1"},
        capture_output=True,
        encoding="utf-8",
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_the_wheel_holds_every_file_of_the_package(wheel: Path) -> None:
    """Modules, recipes with their data, templates; DeepSpeed files, Ray entry points and Slurm scripts."""
    folders = {ROOT / "xlr": "xlr", **{ROOT / name: f"xlr/{name}" for name in BESIDE}}
    expected = {
        f"{inside}/{path.relative_to(folder).as_posix()}"
        for folder, inside in folders.items()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    with zipfile.ZipFile(wheel) as archive:
        assert {name for name in archive.namelist() if ".dist-info/" not in name} == expected
    kinds = {Path(name).suffix for name in expected}
    assert {".py", ".yaml", ".json", ".jsonl", ".sbatch", ".sh", ".html"} <= kinds


def test_the_extras_of_the_wheel_are_those_of_setup_py_and_of_the_pages(metadata: Message) -> None:
    tree = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))
    (given,) = (node.value for node in ast.walk(tree) if isinstance(node, ast.keyword) and node.arg == "extras_require")
    extras: dict[str, list[str]] = ast.literal_eval(given)
    requirements = list(map(Requirement, metadata.get_all("Requires-Dist", [])))

    def has(extra: str, text: str) -> bool:
        wanted = Requirement(text)
        return any(
            (found.name, found.specifier) == (wanted.name, wanted.specifier)
            and found.marker is not None
            and found.marker.evaluate({"extra": extra})
            for found in requirements
        )

    assert set(metadata.get_all("Provides-Extra", [])) == set(extras)
    assert [(extra, text) for extra, texts in extras.items() for text in texts if not has(extra, text)] == []
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md"), ROOT / "Makefile"]
    pages += (ROOT / "xlr").rglob("*.py")
    named = {
        extra
        for page in pages
        for names in re.findall(r"\.\[([a-z]+(?:,[a-z]+)*)\]", page.read_text(encoding="utf-8"))
        for extra in names.split(",")
    }
    assert {"quickstart", "test", "vllm"} <= named <= set(extras)


def test_an_installed_wheel_works_from_any_folder(
    environment: Path, tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    code = (
        "import xlr; from xlr.shipped import RECIPES, shipped; print(xlr.__file__, RECIPES); "
        "print(shipped('ds_configs', 'zero3.json'), shipped('ray_jobs', 'score.py'), shipped('slurm', 'lib.sh')); "
        "from xlr.report import page; print(page.environment().get_template('report.html').filename)"
    )
    places = installed(environment, tmp_path, "python", "-c", code).split()
    assert len(places) == 6
    assert all(Path(place).is_relative_to(environment) for place in places), places
    recipes = Path(places[1])

    assert installed(environment, tmp_path, "xlr", "--version") == f"xlr {xlr.__version__}\n"
    assert "llama3-8b: The paper's run" in installed(environment, tmp_path, "xlr", "recipes")
    site = ("--site", recipes / "site.yaml")
    submitted = installed(environment, tmp_path, "xlr", "submit", recipes / "llama3-8b.yaml", *site, "--dry-run")
    assert submitted.startswith("job ")
    scripts = {path.name for path in (ROOT / "slurm").iterdir()}
    code = f"from xlr.shipped import shipped; print(shipped('slurm', '{ARRAY}').read_text())"
    assert "SLURM_ARRAY_TASK_ID" in installed(environment, tmp_path, "python", "-c", code)
    assert scripts - {ARRAY} <= set(re.findall(r"^--- .*/slurm/(\S+)$", submitted, re.MULTILINE))
    model = f"model.initial={tiny_models['initial']}"
    data = installed(environment, tmp_path, "xlr", "data", recipes / "quickstart.yaml", model)
    assert "Pourquoi l'eau de la mer est-elle salée ?" in data
    assert [path for path in tmp_path.iterdir() if not path.name.startswith(".")] == [], "only caches are written"
