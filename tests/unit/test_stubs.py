"""The hand-written `.pyi` of each extension says what the extension has, no more and no less."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
MODULES = sorted(path.stem for path in (ROOT / "_fastpath").glob("*.pyx"))


@pytest.fixture(params=MODULES)
def pair(request: pytest.FixtureRequest) -> tuple[Any, ast.Module]:
    """A module and its stub."""
    module = pytest.importorskip(f"_fastpath.{request.param}", reason="make setup builds it")
    return module, ast.parse((ROOT / "_fastpath" / f"{request.param}.pyi").read_text())


def declared(body: list[ast.stmt]) -> dict[str, ast.stmt]:
    """Return what a stub declares in one scope, by name; imports are nobody's but its own."""
    found: dict[str, ast.stmt] = {}
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = node
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found[node.target.id] = node
    return found


def own(module: Any) -> set[str]:
    """Return the public names that a module makes itself."""
    source = (ROOT / "_fastpath" / f"{module.__name__.rpartition('.')[2]}.pyx").read_text()
    imports = re.findall(r"^from \S+ import (\([^)]*\)|.*)$", source, re.MULTILINE)
    imported = set(re.findall(r"\w+", " ".join(imports)))
    return {
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and name not in imported
        and not inspect.ismodule(value)
        and getattr(value, "__module__", module.__name__) == module.__name__
    }


def functions(module: Any, stub: ast.Module) -> Iterator[tuple[str, ast.FunctionDef, Any, bool]]:
    """Each function of a stub: its name, itself, what the extension has, whether it has a self."""
    for name, node in declared(stub.body).items():
        if isinstance(node, ast.FunctionDef):
            yield name, node, getattr(module, name), False
        elif isinstance(node, ast.ClassDef):
            for method, inner in declared(node.body).items():
                if isinstance(inner, ast.FunctionDef) and method[:2] != "__":
                    kept = getattr(getattr(module, name), method)
                    yield f"{name}.{method}", inner, kept, True


def test_every_extension_has_a_stub() -> None:
    assert {"codec", "deflate", "reactor"} <= set(MODULES)
    assert {path.stem for path in (ROOT / "_fastpath").glob("*.pyi")} == set(MODULES)


def test_names(pair: tuple[Any, ast.Module]) -> None:
    module, stub = pair
    assert set(declared(stub.body)) == own(module)


def test_classes(pair: tuple[Any, ast.Module]) -> None:
    module, stub = pair
    for name, node in declared(stub.body).items():
        kept = getattr(module, name)
        assert isinstance(node, ast.ClassDef) is inspect.isclass(kept), name
        if isinstance(node, ast.ClassDef) and not issubclass(kept, tuple):
            names = {each for each in vars(kept) if not each.startswith("_")}
            assert {each for each in declared(node.body) if not each.startswith("_")} == names


def test_arguments(pair: tuple[Any, ast.Module]) -> None:
    """Names, order, kinds and whether there is a default, as far as an extension tells."""
    module, stub = pair
    for name, node, kept, with_self in functions(module, stub):
        if any(
            isinstance(each, ast.Name) and each.id == "property" for each in node.decorator_list
        ):
            assert not callable(kept), name
            continue
        parameters = list(inspect.signature(kept).parameters.values())
        arguments = node.args.posonlyargs + node.args.args
        names = [each.arg for each in arguments + node.args.kwonlyargs]
        assert [each.name for each in parameters] == names, name
        assert not with_self or names[0] == "self", name
        keywords = [each.name for each in parameters if each.kind is each.KEYWORD_ONLY]
        assert keywords == [each.arg for each in node.args.kwonlyargs], name
        defaults = sum(each.default is not each.empty for each in parameters)
        stubbed = len(node.args.defaults) + sum(each is not None for each in node.args.kw_defaults)
        assert defaults == stubbed, name


def test_constants(pair: tuple[Any, ast.Module]) -> None:
    module, stub = pair
    for name, node in declared(stub.body).items():
        if isinstance(node, ast.AnnAssign):
            stated = ast.unparse(node.annotation)
            kind = type(getattr(module, name)).__name__
            assert kind in stated, f"{name} is {kind}, not {stated}"
