"""Do the examples of the docstrings run, and does everything public have one?"""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import inspect
import pkgutil
from types import ModuleType

import fastrnn
import pytest

MODULES = [
    importlib.import_module(module.name)
    for module in pkgutil.walk_packages(fastrnn.__path__, "fastrnn.")
    if module.name not in {"fastrnn._core", "fastrnn._cuda", "fastrnn.__main__"}
    and not any(
        module.name.startswith(f"fastrnn.{library}") and importlib.util.find_spec(library) is None
        for library in ("jax", "torch")
    )
]


@pytest.mark.parametrize("module", [fastrnn, *MODULES], ids=lambda module: module.__name__)
def test_examples_run(module: ModuleType) -> None:
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize("name", sorted(set(fastrnn.__all__) - {"__version__"}))
def test_everything_public_is_documented_with_an_example(name: str) -> None:
    entry = getattr(fastrnn, name)
    assert entry.__doc__, name
    if not inspect.ismodule(entry):
        assert ">>>" in entry.__doc__, f"{name} has no example"
