"""The house: imports point one way, heavy dependencies have one home, the command line starts fast."""

import ast
import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "xlr"

# From the bottom to the top: a module imports from its own layer's left and from lower layers only.
LAYERS = [
    [
        "errors",
        "records",
        "languages",
        "config",
        "shipped",
        "preemption",
        "launch",
        "progress",
        "dsconfig",
        "scheduler",
    ],
    [
        "logprobs",
        "losses",
        "rewards",
        "lengthcontrol",
        "batching",
        "recompute",
        "sampling",
        "watch",
        "products",
        "winrate",
        "verdicts",
        "agreement",
    ],
    [
        "store",
        "lease",
        "prompts",
        "difficulty",
        "annotations",
        "encoding",
        "metrics",
        "packing",
        "models",
        "quality",
        "actor",
        "worker",
        "vllmsampler",
        "raypool",
        "stage",
        "engine",
        "trackers",
        "judgeprompt",
        "verdictcache",
        "localjudge",
        "servedjudge",
        "endpoint",
    ],
    [
        "modelcard",
        "responses",
        "scores",
        "pairs",
        "trainingpairs",
        "reference",
        "training",
        "evaluation",
        "judgements",
        "trainer",
        "diagnosis",
    ],
    [
        "pipeline",
        "tables",
        "conclusion",
        "comparison",
        "plots",
        "curves",
        "examples",
        "page",
        "report",
        "figures",
        "inspectionview",
        "inspection",
    ],
    ["jobs"],
    ["submission"],
    ["doctor"],
    ["cli"],
    ["__main__"],
]
LAYER_OF = {name: number for number, names in enumerate(LAYERS) for name in names}
PURE = LAYERS[1]
HOMES = {
    "deepspeed": {"engine"},
    "ray": {"raypool"},
    "vllm": {"vllmsampler"},
    "lingua": {"languages"},
    "openai": {"endpoint"},
    "matplotlib": {"plots"},
    "wandb": {"trackers"},
    "mlflow": {"trackers"},
}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


MODULES = {path.stem: imports(path) for path in PACKAGE.glob("*.py") if path.stem != "__init__"}


def test_every_module_has_a_layer() -> None:
    assert set(MODULES) == set(LAYER_OF)


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_point_down(name: str) -> None:
    ours = {found.split(".")[1] for found in MODULES[name] if found.startswith("xlr.")} & set(LAYER_OF)
    upward = {other for other in ours if LAYER_OF[other] > LAYER_OF[name]}
    if name == "training":
        upward -= {"trainer"}  # the rank's own loop, imported when this process is a rank
    assert not upward


@pytest.mark.parametrize("name", PURE)
def test_mathematics_imports_torch_and_the_standard_library_only(name: str) -> None:
    outside = {found.split(".")[0] for found in MODULES[name]} - set(sys.stdlib_module_names)
    assert outside <= {"torch"}


@pytest.mark.parametrize("library", sorted(HOMES))
def test_a_heavy_dependency_has_one_home(library: str) -> None:
    users = {name for name, found in MODULES.items() if library in {module.split(".")[0] for module in found}}
    assert users == HOMES[library]


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; import xlr, xlr.cli; "
        "print(sorted({'torch', 'ray', 'deepspeed', 'transformers', 'datasets', 'matplotlib'} & set(sys.modules)))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"


def test_help_comes_within_half_a_second() -> None:
    seconds = []
    for _ in range(5):
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-m", "xlr", "--help"], capture_output=True, check=True)
        seconds.append(time.perf_counter() - begun)
    assert min(seconds) < 0.5


def test_an_installed_wheel_works_from_any_folder(tmp_path: Path) -> None:
    """The wheel holds recipes, DeepSpeed files, Ray and Slurm entry points, and finds them without a checkout."""
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet", "-w", str(tmp_path)]
    source = tmp_path / "source"
    ignore = shutil.ignore_patterns(".venv*", ".git", "models", "runs", "build", "*.egg-info", "__pycache__", "*_cache")
    shutil.copytree(PACKAGE.parent, source, ignore=ignore)
    subprocess.run([*build, str(source)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = (
        "import xlr; from xlr import config; from xlr.shipped import shipped; print(xlr.__file__); "
        "print(shipped('ds_configs', 'zero3.json'), shipped('ray_jobs', 'score.py'), shipped('slurm', 'lib.sh')); "
        "run = config.load(config.RECIPES / 'quickstart.yaml'); "
        "from xlr import page; print(page.environment().get_template('report.html').filename); "
        "from xlr.data.prompts import load_prompts; print(len(load_prompts(run.prompts, run.languages)['fr']))"
    )
    command = [sys.executable, "-P", "-c", code] if sys.version_info >= (3, 11) else [sys.executable, "-c", code]
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    result = subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.count(str(tmp_path / "site")) == 5
    assert result.stdout.split()[-1] == "24"
