"""The house: imports point one way, heavy dependencies have one home, the command line starts fast."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "xlr"

# The import rule, from the top to the bottom: a package or top-level module imports only from layers below its own.
LAYERS: list[set[str]] = [
    {"__main__"},
    {"commands", "api"},
    {"sweep"},
    {"jobs", "report"},
    {"findings"},
    {"planning"},
    {"selftest"},
    {"pipeline"},
    {"certificate"},
    {"benchmarking", "dialogues", "evaluation", "training"},
    {"labelled"},
    {"rewarding"},
    {"sampling", "judging"},
    {"work", "zero", "tracking"},
    {"run"},
    {"leases"},
    {"cluster"},
    {"model", "data", "chat"},
    {"packing", "configfile"},
    {"settings", "detection"},
    {"terminal", "languages", "shipped", "stages", "versions"},
    {"foreign"},
    {"errors", "records", "maths"},
]
LEVEL = {name: level for level, names in enumerate(reversed(LAYERS)) for name in names}
MOST_FILES, MOST_LINES, LONGEST_MODULE = 15, 1800, 400

# The modules that import each heavy dependency: one, but for DeepSpeed's converter, which runs in its own process.
HOMES = {
    "deepspeed": {"zero.engine", "zero.universal"},
    "ray": {"cluster.raypool"},
    "vllm": {"model.vllmsampler"},
    "liger_kernel": {"model.fused"},
    "lingua": {"detection"},
    "pycld2": {"detection"},
    "langcodes": {"languages"},
    "openai": {"judging.endpoint"},
    "lm_eval": {"benchmarking.lmharness"},
    "matplotlib": {"report.plots"},
    "wandb": {"tracking.trackers"},
    "mlflow": {"tracking.trackers"},
}


def imports(path: Path) -> set[str]:
    """Dotted names that a module imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


# Dotted name below `xlr` -> what it imports.
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): imports(path)
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.name != "__init__.py" and "recipes" not in path.parts
}
FOLDERS = sorted({name.split(".")[0] for name in MODULES if "." in name})


def ours(name: str) -> set[str]:
    """The modules of xlr that a module imports."""
    return {found.removeprefix("xlr.") for found in MODULES[name] if found.startswith("xlr.")} & set(MODULES)


def test_every_folder_and_module_has_a_level() -> None:
    assert {name.split(".")[0] for name in MODULES} == set(LEVEL)


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_point_one_way(name: str) -> None:
    here = name.split(".")[0]
    there = {other.split(".")[0] for other in ours(name)} - {here}
    assert not {other for other in there if LEVEL[other] >= LEVEL[here]}


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_folder_has_a_circle_inside(folder: str) -> None:
    graph = {name: ours(name) for name in MODULES if name.startswith(f"{folder}.")}
    order = TopologicalSorter({name: found & set(graph) for name, found in graph.items()})
    order.prepare()  # raises CycleError and names the circle


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_can_be_read_in_a_sitting(folder: str) -> None:
    files = list((PACKAGE / folder).glob("*.py"))
    lines = sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)
    assert len(files) - 1 <= MOST_FILES  # but for __init__
    assert lines <= MOST_LINES


@pytest.mark.parametrize("name", sorted(MODULES))
def test_no_module_is_long(name: str) -> None:
    path = (PACKAGE / name.replace(".", "/")).with_suffix(".py")
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST_MODULE


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_package_says_what_it_is_and_exports_nothing(folder: str) -> None:
    tree = ast.parse((PACKAGE / folder / "__init__.py").read_text(encoding="utf-8"))
    assert ast.get_docstring(tree)
    assert len(tree.body) == 1


@pytest.mark.parametrize("name", [name for name in sorted(MODULES) if name.startswith("maths.")])
def test_mathematics_imports_torch_and_the_standard_library_only(name: str) -> None:
    outside = {found.split(".")[0] for found in MODULES[name]} - set(sys.stdlib_module_names)
    assert outside <= {"torch", "xlr"}
    assert {other.split(".")[0] for other in ours(name)} <= {"maths"}


@pytest.mark.parametrize("library", sorted(HOMES))
def test_a_heavy_dependency_has_one_home(library: str) -> None:
    users = {name for name, found in MODULES.items() if library in {module.split(".")[0] for module in found}}
    assert users == HOMES[library]


@pytest.mark.parametrize(
    "modules",
    [
        "",
        "from xlr import pipeline, stages; list(map(pipeline._module, stages.STAGES)); ",
        "from xlr.findings import status; from xlr.jobs import submission; from xlr.planning import planfile; ",
    ],
)
def test_looking_at_a_run_loads_nothing_heavy(modules: str) -> None:
    """Help needs the commands alone; what shows or plans a run needs the modules of its stages as well."""
    heavy = {"torch", "ray", "deepspeed", "transformers", "datasets", "matplotlib"}
    code = f"import sys; import xlr, xlr.commands.cli; {modules}print(sorted({heavy} & set(sys.modules)))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"


def test_help_comes_at_once() -> None:
    """In processor time, which other work on the machine changes little."""
    command = [sys.executable, "-m", "xlr", "--help"]
    code = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], capture_output=True, check=True); "
        "used = resource.getrusage(resource.RUSAGE_CHILDREN); print(used.ru_utime + used.ru_stime)"
    )
    measure = [sys.executable, "-c", code, *command]
    seconds = [float(subprocess.run(measure, capture_output=True, text=True, check=True).stdout) for _ in range(5)]
    assert min(seconds) < 0.3
