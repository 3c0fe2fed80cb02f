"""Do the examples in the documents run, and do their links lead somewhere?"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("csrc/*.md")])
EXAMPLES = [
    pytest.param(match[1], id=f"{path.relative_to(ROOT)}-{number}")
    for path in DOCUMENTS
    for number, match in enumerate(re.finditer(r"^```python\n(.*?)^```$", path.read_text(), re.M | re.S), 1)
]


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 3


@pytest.mark.parametrize("code", EXAMPLES)
def test_examples_run(code: str) -> None:
    if "import torch" in code:
        pytest.importorskip("torch")
    exec(compile(code, "example", "exec"), {})


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_to_files(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text()):
        assert (path.parent / target).exists(), f"{path.name} links to {target}, which does not exist"


@pytest.mark.parametrize("path", sorted(ROOT.glob("csrc/cuda/kernels/*.h")), ids=lambda path: path.name)
def test_every_kernel_has_a_row_in_the_status_table(path: Path) -> None:
    rows = re.findall(r"^\| (.*?) \|", (ROOT / "docs/gpu.md").read_text(), re.M)
    listed = set(re.findall(r"`(\w+)`", " ".join(rows)))
    for kernel in re.findall(r'kName = "(\w+)"', path.read_text()):
        assert kernel in listed, f"docs/gpu.md does not say what has been seen of {kernel}"
