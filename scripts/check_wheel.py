"""Install a wheel in a new environment with nothing but what it declares, and run the smoke test there.

Usage: check_wheel.py WHEEL MEGABYTES, the size that it has to stay under
"""

import subprocess
import sys
import tempfile
import venv
from pathlib import Path

SMOKE_TEST = Path(__file__).resolve().with_name("smoke_test.py")


def main(wheel: Path, megabytes: float) -> None:
    """Raise SystemExit or CalledProcessError if anything is wrong with `wheel`."""
    size = wheel.stat().st_size
    print(f"{wheel.name}: {size / 1e6:.2f} MB")
    if size >= megabytes * 1e6:
        raise SystemExit(f"{wheel} has {size} bytes; expected less than {megabytes:g} MB")
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = Path(folder, "bin", "python")
        pip = [python, "-m", "pip", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", wheel.resolve()], check=True)
        subprocess.run([*pip, "check"], check=True)
        subprocess.run([python, "-I", SMOKE_TEST, folder], check=True, cwd=folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))
