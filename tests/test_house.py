"""The architecture, held by the syntax trees: layers point one way, nothing goes round, files stay small, imports stay cheap."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("miniplm", "tasks", "flows")
FILES = {
    path: ast.parse(path.read_text(encoding="utf-8")) for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))
}
MAX_LINES = 400
# The main of a process: torchrun tells it by the environment which of several it is.
READS_ENVIRONMENT = "miniplm.training.worker_process"
VAGUE_NAMES = {"utils", "util", "common", "helpers", "helper", "misc"}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): tree for path, tree in FILES.items()}


def list_imports(module: str, nodes: list[ast.AST]) -> set[str]:
    """Full names that import statements among `nodes` name; `from a import b` gives `a.b`, be `b` a module or a name in `a`."""
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                is_package = any((ROOT / module.replace(".", "/")).glob("__init__.py"))
                parts = module.split(".")
                parents = parts[: len(parts) - node.level + is_package]
                base = ".".join([*parents, base] if base else parents)
            names.update(f"{base}.{alias.name}" for alias in node.names)
    return names


def all_nodes(tree: ast.AST) -> list[ast.AST]:
    return list(ast.walk(tree))


def import_time_nodes(tree: ast.AST) -> list[ast.AST]:
    """The nodes that run when the module is imported: not function bodies, and not `if TYPE_CHECKING:`."""
    found: list[ast.AST] = []
    queue = [tree]
    while queue:
        node = queue.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            queue.extend(node.orelse)
            continue
        found.append(node)
        queue.extend(ast.iter_child_nodes(node))
    return found


def starts_with_package(names: set[str], packages: set[str]) -> list[str]:
    return sorted(name for name in names if name.split(".")[0] in packages)


@pytest.mark.parametrize(
    ("layer", "forbidden"),
    [("miniplm", {"prefect", "tasks", "flows", "typer"}), ("tasks", {"flows", "typer"})],
)
def test_a_layer_imports_nothing_from_above_it(layer: str, forbidden: set[str]) -> None:
    found = {
        module: offenders
        for module, tree in MODULES.items()
        if module.split(".")[0] == layer and (offenders := starts_with_package(list_imports(module, all_nodes(tree)), forbidden))
    }
    assert not found


def test_the_layer_test_sees_every_form_of_import() -> None:
    tree = ast.parse(
        "import prefect.tasks as t\nfrom flows import run\nfrom . import nll\nfrom ..tasks import score\ndef f():\n    import tasks.score\n"
    )
    names = list_imports("miniplm.scoring.engine", all_nodes(tree))
    assert names == {
        "prefect.tasks",
        "flows.run",
        "miniplm.scoring.nll",
        "miniplm.tasks.score",
        "tasks.score",
    }


def find_cycle(graph: dict[str, set[str]]) -> list[str]:
    """One cycle of a graph as the list of its nodes, or an empty list."""
    finished: set[str] = set()

    def visit(node: str, path: list[str]) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in finished:
            return []
        for successor in sorted(graph.get(node, ())):
            if cycle := visit(successor, [*path, node]):
                return cycle
        finished.add(node)
        return []

    for node in sorted(graph):
        if cycle := visit(node, []):
            return cycle
    return []


def owning_module(name: str) -> str:
    """The module of ours that an imported name is, or is in; '' for a name that is not ours."""
    return name if name in MODULES else parent if (parent := name.rpartition(".")[0]) in MODULES else ""


def test_files_of_a_package_that_are_not_python_go_into_the_wheel() -> None:
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    packed = {
        path for package, names in patterns.items() for name in names for path in (ROOT / package.replace(".", "/")).glob(name)
    }
    files = {path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.is_file()}
    others = {path for path in files if path.suffix not in (".py", ".pyc")}
    assert ROOT / "miniplm/report/templates/page.html" in others
    assert others <= packed


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {
        module: {
            owner for name in list_imports(module, import_time_nodes(tree)) if (owner := owning_module(name)) not in ("", module)
        }
        for module, tree in MODULES.items()
    }
    assert sum(len(edges) for edges in graph.values()) > 10, "the graph of imports is empty: the test would see nothing"
    assert find_cycle(graph) == []


def test_a_circle_of_three_is_found() -> None:
    assert find_cycle({"a": {"b", "d"}, "b": {"c"}, "c": {"a"}, "d": set()}) == ["a", "b", "c", "a"]
    assert find_cycle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def reads_environment(tree: ast.AST) -> list[int]:
    """Lines that name os.environ, os.environb or os.getenv, however they are imported."""
    wanted = {"environ", "environb", "getenv"}
    lines = []
    for node in ast.walk(tree):
        attribute = isinstance(node, ast.Attribute) and node.attr in wanted and ast.unparse(node.value) in ("os", "posix")
        imported = isinstance(node, ast.ImportFrom) and node.module == "os" and any(alias.name in wanted for alias in node.names)
        if attribute or imported:
            lines.append(node.lineno)
    return lines


def test_the_library_does_not_read_the_environment() -> None:
    found = {
        module: lines for module, tree in MODULES.items() if module.startswith("miniplm") and (lines := reads_environment(tree))
    }
    assert set(found) == {READS_ENVIRONMENT}
    assert [module for module, tree in MODULES.items() if READS_ENVIRONMENT in list_imports(module, all_nodes(tree))] == []


def test_reading_the_environment_is_seen_in_each_form() -> None:
    tree = ast.parse("import os\nos.environ['A']\nos.getenv('A')\nfrom os import environ\nos.path.join('a')\n")
    assert sorted(reads_environment(tree)) == [2, 3, 4]


def test_every_file_holds_one_idea_that_fits_in_400_lines() -> None:
    files = [*FILES, *sorted((ROOT / "scripts").rglob("*.py")), *sorted((ROOT / "tests").rglob("*.py"))]
    lengths = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert {name: length for name, length in lengths.items() if length > MAX_LINES} == {}


def test_every_module_has_a_name_that_says_what_it_is() -> None:
    assert [module for module in MODULES if VAGUE_NAMES & set(module.split("."))] == []


def test_every_module_imports_and_the_library_does_so_without_prefect() -> None:
    """One interpreter imports all modules of the library, then those above it."""
    library = sorted(module for module in MODULES if module.split(".")[0] == "miniplm")
    above = sorted(module for module in MODULES if module.split(".")[0] != "miniplm" and not module.endswith("__main__"))
    program = f"""
import importlib, sys
for name in {library!r}:
    importlib.import_module(name)
print("prefect" in sys.modules, "tasks" in sys.modules, "flows" in sys.modules)
for name in {above!r}:
    importlib.import_module(name)
print("imported")
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout.splitlines() == ["False False False", "imported"], done.stderr[-2000:]


def test_light_modules_load_neither_torch_nor_transformers() -> None:
    """One interpreter imports them one after the other, and says after each what is there."""
    light = [
        "miniplm",
        "miniplm.config",
        "miniplm.config_files",
        "miniplm.layout",
        "miniplm.storage",
        "flows.cli.app",
        "flows.cli.tables",
    ]
    program = f"""
import importlib, sys
for name in {light!r}:
    importlib.import_module(name)
    print(name, sorted({{"torch", "transformers", "prefect", "duckdb"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.splitlines() == [f"{module} []" for module in light]


def names_files_in_sql(tree: ast.AST) -> list[int]:
    """Lines with a string, or a part of one, in which SQL reads files: `read_parquet(`, `parquet_scan(`, `FROM '...'`."""
    pattern = re.compile(r"\b(read_parquet|parquet_scan|read_csv|read_json)\w*\s*\(|\b(FROM|JOIN)\s+'", re.IGNORECASE)
    strings = (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str))
    return sorted(node.lineno for node in strings if pattern.search(node.value))


def test_one_module_names_files_in_sql_so_that_no_query_takes_folders_for_columns() -> None:
    benchmarks = {path.name: ast.parse(path.read_text(encoding="utf-8")) for path in sorted((ROOT / "benchmarks").rglob("*.py"))}
    found = {module for module, tree in (MODULES | benchmarks).items() if names_files_in_sql(tree)}
    assert found == {"miniplm.selection.scans"}
    page = (ROOT / "docs" / "storage.md").read_text(encoding="utf-8")
    assert len(re.findall(r"read_parquet\('[^']*', hive_partitioning = false\)", page)) == len(re.findall("read_parquet", page)) > 0
    assert not re.search(r"(FROM|JOIN) '", page)


def test_files_in_sql_are_seen_in_each_form() -> None:
    tree = ast.parse("a = 'SELECT 1 FROM read_parquet(x)'\nb = f\"select {a} from '{a}'\"\nc = \"JOIN 'x'\"\nread_parquet(a)\n")
    assert names_files_in_sql(tree) == [1, 2, 3]


def paths_read_by_pyarrow(tree: ast.AST) -> list[int]:
    """Lines where PyArrow reads a table by its path: it would take `key=value` in it for a column. Open files and buffers have none."""
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute))
    named = [
        call for call in calls if ast.unparse(call.func) in ("pq.read_table", "pq.ParquetDataset", "ds.dataset", "pd.read_parquet")
    ]
    return [call.lineno for call in named if not re.match(r"(file$|pa\.BufferReader\(|io\.BytesIO\()", ast.unparse(call.args[0]))]


def test_the_library_reads_tables_from_open_files() -> None:
    assert {module: lines for module, tree in MODULES.items() if (lines := paths_read_by_pyarrow(tree))} == {}
    assert paths_read_by_pyarrow(ast.parse("pq.read_table(path)\npq.read_table(file)\npq.read_table(pa.BufferReader(b))")) == [1]
