"""Arrays on a device for tests."""

from __future__ import annotations

from typing import Any

import numpy as np
from fastrnn import _device


def device_array(array: np.ndarray, dtype: str = "", device: int = 0, stream: int = 1) -> Any:
    """Return a copy on a device, ordered on a stream; bfloat16 is made of float32."""
    return _device.module().from_host(array, dtype or array.dtype.name, device, stream)
