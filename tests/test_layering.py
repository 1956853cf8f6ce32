"""The house: floors import downwards only, and heavy libraries only where they are needed."""

import ast
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).parent.parent / "src" / "gspo"

FLOORS = [
    {"errors", "log", "types", "config", "core"},
    {"data", "rewards", "report"},
    {"policy"},
    {"engines"},
    {"training"},
    {"recipe"},
    {"cli"},
]
ONLY_IN = {
    "matplotlib": {"report/plots.py"},
    "tensorboard": {"report/tensorboard.py"},
    "datasets": {"data/sources.py"},
    "pyarrow": {"data/sources.py"},
    "reasoning_gym": {"data/sources.py"},
    "math_verify": {"rewards/math.py"},
    "pydantic": {"config.py"},
    "rich": {"report/display.py"},
    "argparse": {"cli.py"},
}


def modules():
    for path in SOURCE.rglob("*.py"):
        yield path.relative_to(SOURCE), ast.parse(path.read_text())


def imported(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


def floor(part):
    return next(i for i, parts in enumerate(FLOORS) if part in parts)


def test_imports_go_downwards():
    for path, tree in modules():
        if path.name == "__init__.py" and len(path.parts) == 1:
            continue
        own = path.parts[0].removesuffix(".py")
        for name in imported(tree):
            if name.startswith("gspo."):
                part = name.split(".")[1]
                assert part == own or floor(part) <= floor(own), f"{path} imports {name}"


def test_core_imports_torch_alone():
    for path, tree in modules():
        if path.parts[0] == "core":
            outside = {name.split(".")[0] for name in imported(tree)} - set(sys.stdlib_module_names)
            assert outside <= {"torch", "gspo"}, path
            inside = {name for name in imported(tree) if name.startswith("gspo")}
            assert all(name.startswith("gspo.core") for name in inside), path


def test_heavy_libraries_stay_in_their_files():
    for path, tree in modules():
        for name in imported(tree):
            places = ONLY_IN.get(name.split(".")[0])
            assert places is None or str(path) in places, f"{path} imports {name}"


def test_files_are_short():
    for path, _ in modules():
        assert len((SOURCE / path).read_text().splitlines()) <= 350, path


def test_help_answers_before_torch_is_imported():
    code = "import sys, gspo.cli; gspo.cli.main(['--help']); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
