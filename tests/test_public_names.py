"""What users may import is what a room names in `__all__`: the runtime its classes, other rooms their modules."""

from __future__ import annotations

import ast
import importlib
import pkgutil

import pytest

ROOMS = (
    *("calib_data", "compiler", "evaluate", "export", "export.var", "graph_passes", "measure", "models", "models.t5"),
    *("models.var", "paper", "report", "simulation"),
)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_names_its_modules_without_underscore(room: str) -> None:
    package = importlib.import_module(f"nextscale.{room}")
    modules = {module.name for module in pkgutil.iter_modules(package.__path__)}
    named = set(package.__all__)
    assert modules & named == {module for module in modules if not module.startswith("_")}
    assert all(hasattr(package, name) for name in named - modules)


def test_the_runtime_names_classes_and_hides_its_modules() -> None:
    package = importlib.import_module("nextscale.runtime")
    assert all(hasattr(package, name) for name in package.__all__)
    modules = {module.name for module in pkgutil.iter_modules(package.__path__) if not module.name.startswith("_")}
    assert modules == {"image_io"}  # pictures to files: it needs pillow


@pytest.mark.parametrize("room", ROOMS)
def test_public_modules_and_their_names_have_docstrings(room: str) -> None:
    """Functions and classes that a module shows say what they are; a method may follow from its class."""
    package = importlib.import_module(f"nextscale.{room}")
    for module in pkgutil.iter_modules(package.__path__):
        spec = importlib.util.find_spec(f"nextscale.{room}.{module.name}")
        assert spec is not None
        if module.ispkg or module.name.startswith("_"):
            continue
        assert spec.origin is not None
        with open(spec.origin, encoding="utf-8") as file:
            tree = ast.parse(file.read())
        assert ast.get_docstring(tree), module.name
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{module.name}.{node.name}"
