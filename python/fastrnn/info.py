"""What this build and machine offer, and the number of threads."""

from __future__ import annotations

import platform
from typing import Any

import numpy as np

from . import _core
from .layouts import integer

__all__ = ["Report", "get_num_threads", "info", "set_num_threads"]

_MOST_THREADS = 1024  # that of the kernels; more is a mistake


class Report(dict[str, Any]):
    """A dict that prints as one ``name: value`` a line.

    Examples
    --------
    >>> from fastrnn.info import Report
    >>> Report(kernel="gru_fwd_infer", threads=2)
    kernel:  gru_fwd_infer
    threads: 2
    """

    def __repr__(self) -> str:
        width = max((len(name) for name in self), default=0) + 1
        return "\n".join(f"{name + ':':<{width}} {_text(value)}" for name, value in self.items())

    __str__ = __repr__


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def info() -> Report:
    """Version, build, instruction sets, threads, and whether CUDA can be used and why not.

    Returns
    -------
    Report
        A dict with the keys ``version``, ``python``, ``numpy``, ``machine``, what the build says of itself
        (``compiler``, ``build_type``, ``isas`` compiled in), ``isas_available`` on this CPU, ``isa`` in
        force, ``threads`` and ``cuda``.

    Examples
    --------
    >>> import fastrnn
    >>> report = fastrnn.info()
    >>> report["isa"] in report["isas_available"]
    True
    """
    build: dict[str, Any] = dict(_core.build_info())
    report = Report(
        version=build["version"],
        python=platform.python_version(),
        numpy=np.__version__,
        machine=platform.machine(),
    )
    report.update(build)
    report.update(
        isas=build["isas"].split(", "),
        isas_available=_core.available_isas(),
        isa=_core.isa(),
        threads=_core.get_num_threads(),
        cuda=f"{build['cuda']}: {cuda_missing()}",
    )
    return report


def cuda_missing() -> str:
    """Why ``device="cuda"`` cannot be had."""
    return "this version has no CUDA kernels"


def set_num_threads(n: int) -> None:
    """Set how many threads a call may use; results do not depend on it.

    Parameters
    ----------
    n : int
        At least 1.  The default is the number of CPUs that this process may use, or the environment
        variable ``FASTRNN_NUM_THREADS``.

    Raises
    ------
    TypeError, ValueError
        If `n` is no integer, or not from 1 to 1024.

    Examples
    --------
    >>> import fastrnn
    >>> before = fastrnn.get_num_threads()
    >>> fastrnn.set_num_threads(1)
    >>> fastrnn.get_num_threads()
    1
    >>> fastrnn.set_num_threads(before)
    """
    _core.set_num_threads(integer("n", n, 1, _MOST_THREADS))


def get_num_threads() -> int:
    """How many threads a call may use.

    Examples
    --------
    >>> import fastrnn
    >>> fastrnn.get_num_threads() >= 1
    True
    """
    return _core.get_num_threads()
