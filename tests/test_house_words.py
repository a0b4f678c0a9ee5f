"""What a reader meets in a file, held by the syntax trees: shapes with a legend, and imports at the top unless they cost time."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator

from tests.test_house import MODULES, SCRIPTS, list_imports, owning_module

Function = ast.FunctionDef | ast.AsyncFunctionDef

# Types of which a reader has to know the shape; in a `Callable` they are another function's.
SHAPED = {"Tensor", "ndarray", "NDArray", "TokenIds", "IntArray", "IndexArray", "FloatArray", "Floats"}
# `logits_NV`, and `(N, V)`, `(S + 1,)`, `(stop - start, I)`, `(..., H)`, `()` in words.
SUFFIX = re.compile(r"^[a-z]\w*_([A-Z][A-Z0-9]*|[0-9]+[A-Z][A-Z0-9]*)$")
_PART = r"(?:\.\.\.|\d+|[A-Z](?: ?[-+*] ?\w+)?|[a-z_]+ - [a-z_]+|num\w*(?: [-+] \d)?)"
SHAPE = re.compile(rf"(?<!\w)\((?:|\.\.\.|{_PART},|{_PART}(?:, {_PART})+)\)|\bscalar\b")

# Packages that cost a start a tenth of a second or more, and those that are not on every machine.
HEAVY = {
    *("torch", "torch.distributed.fsdp", "torch.distributed.tensor", "transformers", "huggingface_hub", "tokenizers"),
    *("pyarrow", "duckdb", "scipy", "matplotlib", "s3fs", "lm_eval"),
}
# Where each command waits only for what it needs itself: 60 ms of the 600 of a `select`, 16 of a `status`.
WAITING = {"miniplm.run.stages", "miniplm.run.status"}
OPTIONAL = {"quack", "triton", "wandb", "tensorboardX", "liger_kernel", "gigatoken"}


def list_library() -> dict[str, ast.Module]:
    """The trees of the library, parsed when a test asks and not when it is collected."""
    return {module: tree for module, tree in MODULES.items() if module.split(".")[0] == "miniplm"}


def names_shaped(annotation: ast.expr | None) -> bool:
    """Whether a type is, or holds, a tensor or an array."""
    if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) == "Callable":
        return False
    if isinstance(annotation, ast.Name | ast.Attribute):
        return ast.unparse(annotation).split(".")[-1] in SHAPED
    return annotation is not None and any(
        names_shaped(child) for child in ast.iter_child_nodes(annotation) if isinstance(child, ast.expr)
    )


def list_functions(tree: ast.Module) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def says_shape(function: Function, lines: list[str]) -> bool:
    """Whether the docstring, or a comment beside the signature, writes a shape."""
    signature = lines[function.lineno - 1 : function.body[0].lineno - 1] or lines[function.lineno - 1 : function.lineno]
    comments = " ".join(line.partition("#")[2] for line in signature)
    return bool(SHAPE.search(f"{ast.get_docstring(function) or ''} {comments}"))


def list_shapeless(tree: ast.Module, source: str) -> list[str]:
    """Functions that take or give a tensor or an array without its shape in a name or in words."""
    found = []
    for function in list_functions(tree):
        arguments = function.args
        given = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
        unsaid = [item.arg for item in given if item and names_shaped(item.annotation) and not SUFFIX.match(item.arg)]
        gives = names_shaped(function.returns) and not SUFFIX.match(function.name)
        if (unsaid or gives) and not says_shape(function, source.splitlines()):
            found.append(f"{function.lineno} {function.name}({', '.join(unsaid)})")
    return found


def list_letters(tree: ast.Module) -> set[str]:
    """Letters of the shapes that a file's names end in, and that its docstrings write."""
    names = [node.id for node in ast.walk(tree) if isinstance(node, ast.Name)]
    names += [node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)]
    suffixes = "".join(match[1] for name in names if (match := SUFFIX.match(name)))
    words = " ".join(ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, ast.ClassDef | Function))
    return set(re.findall("[A-Z]", suffixes)) | {
        letter for match in SHAPE.finditer(words) for letter in re.findall(r"\b[A-Z]\b", match[0])
    }


def list_unexplained(tree: ast.Module) -> set[str]:
    """Letters that the file's legend, `Shapes: N tokens, ...` in its docstring, does not say."""
    legend = (ast.get_docstring(tree) or "").partition("Shapes: ")[2]
    return list_letters(tree) - set(re.findall(r"\b[A-Z]\b", legend))


def test_every_tensor_and_array_has_its_shape_in_its_name_or_in_words() -> None:
    found = {module: list_shapeless(tree, trees.read(module)) for trees in (MODULES, SCRIPTS) for module, tree in trees.items()}
    assert {module: functions for module, functions in found.items() if functions} == {}


def test_every_file_says_what_the_letters_of_its_shapes_are() -> None:
    assert {module: letters for module, tree in {**MODULES, **SCRIPTS}.items() if (letters := list_unexplained(tree))} == {}


def test_a_shape_that_is_not_said_is_seen() -> None:
    source = '''
def f(x: Tensor) -> int: ...
def g(x_NV: torch.Tensor | None, y: list[Tensor]) -> int: ...
def h(f: Callable[[Tensor], Tensor]) -> Iterator[NDArray[Any]]:
    """Of what is given (Mamba, Falcon)."""
def said(x: Tensor) -> Tensor:  # (N, V)
    """The same."""
def too(x_N: Tensor, y: Tensor) -> Tensor:
    """A number () of y (S + 1,)."""
'''
    tree = ast.parse(source)
    assert list_shapeless(tree, source) == ["2 f(x)", "3 g(y)", "4 h()"]
    assert list_letters(tree) == {"N", "S", "V"}
    assert list_unexplained(ast.parse(f'"""A file.\n\nShapes: N tokens.\n"""{source}')) == {"S", "V"}


@functools.cache
def loads(module: str) -> frozenset[str]:
    """The heavy packages that are loaded once a module is: by what it imports at its top, and by what that imports."""
    tree = MODULES[module]
    names = list_imports(module, list(runs_at_import(tree)))
    ours = {owner for name in names if (owner := owning_module(name, MODULES))} - {module}
    return find_heavy(names).union(*(loads(owner) for owner in ours))


def find_heavy(names: set[str]) -> frozenset[str]:
    return frozenset(package for package in HEAVY for name in names if f"{name}.".startswith(f"{package}."))


def runs_at_import(node: ast.AST) -> Iterator[ast.AST]:
    """Statements that run when a module is imported: not those in functions, nor those for type checkers."""
    for child in ast.iter_child_nodes(node):
        is_for_checkers = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        if not isinstance(child, Function) and not is_for_checkers:
            yield child
            yield from runs_at_import(child)


def list_needless(module: str, tree: ast.Module) -> list[str]:
    """Imports inside a function that could stand at the top: they load nothing heavy that is not there already."""
    needless = []
    for function in list_functions(tree):
        for node in ast.walk(function):
            if not isinstance(node, ast.Import | ast.ImportFrom):
                continue
            names = list_imports(module, [node])
            tops = {name.split(".")[0] for name in names}
            ours = {owner for name in names if (owner := owning_module(name, MODULES))}
            new = find_heavy(names).union(*(loads(owner) for owner in ours)) - loads(module)
            if not new and not tops & OPTIONAL:
                needless.append(f"{node.lineno} {ast.unparse(node)}")
    return sorted(set(needless))


def test_imports_stand_at_the_top_unless_they_load_what_is_heavy() -> None:
    library = {module: tree for module, tree in list_library().items() if module not in WAITING}
    assert {module: needless for module, tree in library.items() if (needless := list_needless(module, tree))} == {}


def test_a_needless_import_inside_a_function_is_seen() -> None:
    tree = ast.parse("import torch\ndef f():\n    import json\n    import scipy\n    from miniplm.errors import ConfigError\n")
    assert list_needless("miniplm.models.nll", tree) == ["3 import json", "5 from miniplm.errors import ConfigError"]
