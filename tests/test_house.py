"""The architecture, held by the syntax trees: layers point one way, nothing goes round, files stay small, imports stay cheap."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("miniplm", "tasks", "flows")
FILES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
MAX_LINES = 400
# The rooms of the library: each imports only those before it. Modules beside them import none of them.
ROOMS = (
    "storage",
    "config",
    "records",
    "sources",
    "models",
    "tokenizers",
    "corpus",
    "scoring",
    "selection",
    "proxy",
    "overlap",
    "derived",
    "export",
    "training",
    "evaluation",
    "run",
    "report",
)
MAX_FLAT = 8
# Used where they are there: PyTorch for CUDA brings triton, the user the others.
OPTIONAL = {"triton", "wandb", "liger_kernel", "vllm", "pytest_timeout", "gigatoken"}
# What set-up puts aside for tests and benchmarks of exports (scripts/readers.txt), and `datasets`, which lm-eval brings.
READERS = {"datatrove", "megatron", "litdata", "streaming", "datasets"}
# The main of a process: torchrun tells it by the environment which of several it is.
READS_ENVIRONMENT = "miniplm.training.processes.main"
VAGUE_NAMES = {"utils", "util", "common", "helpers", "helper", "misc"}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


class Trees(Mapping[str, ast.Module]):
    """Syntax trees by module, each parsed when it is first asked for: what only collects tests parses none."""

    def __init__(self, files: Iterable[Path]) -> None:
        self._paths = {module_name(path): path for path in files}

    def __getitem__(self, module: str) -> ast.Module:
        return parse(self._paths[module])

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)

    def read(self, module: str) -> str:
        """The text that the tree is of."""
        return self._paths[module].read_text(encoding="utf-8")


@functools.cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


MODULES = Trees(FILES)


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
    assert names == {"prefect.tasks", "flows.run", "miniplm.scoring.nll", "miniplm.tasks.score", "tasks.score"}


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


def owning_module(name: str, modules: Mapping[str, ast.Module]) -> str:
    """The module of ours that an imported name is, or is in; '' for a name that is not ours."""
    return name if name in modules else parent if (parent := name.rpartition(".")[0]) in modules else ""


def test_files_of_a_package_that_are_not_python_go_into_the_wheel() -> None:
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    packed = {
        path for package, names in patterns.items() for name in names for path in (ROOT / package.replace(".", "/")).glob(name)
    }
    files = {path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.is_file()}
    others = {path for path in files if path.suffix not in (".py", ".pyc")}
    assert ROOT / "miniplm/report/templates/page.html" in others
    assert others <= packed


SCRIPTS = Trees(path for package in ("scripts", "benchmarks") for path in sorted((ROOT / package).rglob("*.py")))


def list_edges(modules: Mapping[str, ast.Module]) -> dict[str, set[str]]:
    """Which modules each imports, also inside functions."""
    graph = {}
    for module, tree in modules.items():
        owners = {owning_module(name, modules) for name in list_imports(module, all_nodes(tree))}
        graph[module] = owners - {"", module}
    assert sum(len(edges) for edges in graph.values()) > 10, "the graph of imports is empty: the test would see nothing"
    return graph


def test_no_modules_import_each_other_in_a_circle_not_even_inside_functions() -> None:
    assert find_cycle(list_edges({**MODULES, **SCRIPTS})) == []


def room_of(module: str) -> int:
    """The number of a library module's room; -1 for what lies beside the rooms."""
    name = module.split(".")[1] if module.count(".") else ""
    return ROOMS.index(name) if name in ROOMS else -1


def test_a_room_imports_only_the_rooms_before_it() -> None:
    library = {module: tree for module, tree in MODULES.items() if module.split(".")[0] == "miniplm"}
    upward = [
        f"{module} imports {other}"
        for module, others in list_edges(library).items()
        for other in others
        if room_of(other) > room_of(module)
    ]
    assert upward == []
    folders = {path.name for path in (ROOT / "miniplm").iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert folders == set(ROOMS)
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert [room for room in ROOMS if f"| `{room}/` |" not in page] == []
    assert len([path for path in (ROOT / "miniplm").glob("*.py") if path.name != "__init__.py"]) <= MAX_FLAT


def test_every_imported_package_is_declared() -> None:
    """Those of the wheel by what it requires, with its extras; those of scripts and benchmarks may be of the set-up too."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]

    def normalize(requirements: list[str]) -> set[str]:
        return {re.split(r"[^A-Za-z0-9._-]", item, maxsplit=1)[0].lower().replace("_", "-") for item in requirements}

    declared = normalize([*project["dependencies"], *(item for name, items in extras.items() for item in items if name != "dev")])
    distributions = packages_distributions()
    for modules, allowed, optional in (
        (MODULES, declared, OPTIONAL),
        (SCRIPTS, declared | normalize(extras["dev"]), OPTIONAL | READERS),
    ):
        tops = {name.split(".")[0] for module, tree in modules.items() for name in list_imports(module, all_nodes(tree))}
        foreign = tops - set(sys.stdlib_module_names) - {*PACKAGES, "scripts", "benchmarks", "tests", "__future__"} - optional
        missing = {top: distributions.get(top, []) for top in foreign}
        assert {top for top, names in missing.items() if not allowed & {name.lower().replace("_", "-") for name in names}} == set()


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
        "miniplm.config.run",
        "miniplm.config.files",
        "miniplm.layout",
        "miniplm.storage.root",
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
    found = {module for module, tree in {**MODULES, **benchmarks}.items() if names_files_in_sql(tree)}
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
