"""Packages that parts of fastrnn need and that are not installed with it, each by an extra."""

from __future__ import annotations

import importlib.util


def require(package: str, what: str, extra: str | None = None) -> None:
    """Raise ModuleNotFoundError that says which extra brings a package, that of its name if none is named."""
    if importlib.util.find_spec(package) is None:
        message = f"{what} needs {package}: pip install 'fastrnn[{extra or package}]'"
        raise ModuleNotFoundError(message, name=package)
