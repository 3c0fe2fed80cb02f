"""What the machine can do at best: ceiling.cpp, compiled for it and run on it."""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any


def cache_sizes() -> list[int]:
    """Bytes of L1, L2 and L3 as the system tells them, as far as there are any."""
    sizes: dict[int, int] = {}
    for cache in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        if (cache / "type").read_text().strip() != "Instruction":
            text = (cache / "size").read_text().strip()
            sizes[int((cache / "level").read_text())] = int(text.rstrip("KM")) << {"K": 10, "M": 20}[text[-1]]
    return [sizes[level] for level in sorted(sizes)][:3]


def measure(threads: int) -> tuple[dict[str, Any] | None, str]:
    """The rates for this many threads, on the CPUs that this process may use; or None, and why."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "ceiling"
        source = Path(__file__).with_name("ceiling.cpp")
        command = ["g++", "-O2", "-march=native", "-pthread", str(source), "-o", str(program)]
        try:
            subprocess.run(command, check=True, capture_output=True)
            command = [str(program), str(threads), *map(str, cache_sizes())]
            text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        except (OSError, subprocess.CalledProcessError) as error:
            return None, f"no ceiling, and no shares of it: {error}"
    return json.loads(text), ""
