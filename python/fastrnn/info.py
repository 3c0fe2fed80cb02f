"""What this build and machine offer, and the number of threads."""

from __future__ import annotations

import platform
from typing import Any

import numpy as np

from . import _core, _device
from .layouts import integer, one_of

__all__ = [
    "Report",
    "get_float32_products",
    "get_num_threads",
    "info",
    "set_float32_products",
    "set_num_threads",
]

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
        force, ``threads``, and ``cuda``: the devices, or why there is none.  With a device also what
        ``cuda_runtime`` this was built with, ``cuda_driver``, ``cublas`` and ``float32_products``.

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
    )
    report.update(_device.describe())
    return report


def set_float32_products(how: str) -> None:
    """Choose how float32 layers on a CUDA device compute their products.

    Parameters
    ----------
    how : str
        For all calls of this process from now on: "automatic" (the faster of the next two), "plain" (in
        float32), "bf16x3" (each operand as the sum of two bfloat16, on tensor cores: some ten times the
        error of "plain"), or "tf32" (operands rounded to 10 bits of fraction: several times as fast as
        "plain", and not float32 any more, so it is never chosen unless asked for).

    Raises
    ------
    TypeError, ValueError
        If it is none of them.
    RuntimeError
        If this build has no CUDA kernels.

    Examples
    --------
    >>> import fastrnn
    >>> fastrnn.set_float32_products("fast")
    Traceback (most recent call last):
        ...
    ValueError: how is 'fast'; expected one of 'automatic', 'plain', 'bf16x3', 'tf32'
    """
    one_of("how", how, ("automatic", "plain", "bf16x3", "tf32"))
    _device.set_float32_products(how)


def get_float32_products() -> str:
    """How float32 layers on a CUDA device compute their products: see `set_float32_products`.

    Examples
    --------
    >>> import fastrnn
    >>> fastrnn.get_float32_products()
    'automatic'
    """
    return _device.get_float32_products()


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
