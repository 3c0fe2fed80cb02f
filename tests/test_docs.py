"""Do the examples in documents and notebooks run, do links lead somewhere, does the site have everything?"""

from __future__ import annotations

import importlib.util
import json
import pkgutil
import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("csrc/*.md")])
EXAMPLES = [
    pytest.param(match[1], id=f"{path.relative_to(ROOT)}-{number}")
    for path in DOCUMENTS
    for number, match in enumerate(re.finditer(r"^```python\n(.*?)^```$", path.read_text(), re.M | re.S), 1)
]


NOTEBOOKS = sorted(ROOT.glob("docs/*.ipynb"))


def needs_libraries(code: str) -> None:
    for library in ("jax", "torch"):
        if f"import {library}" in code or f"fastrnn.{library}" in code:
            pytest.importorskip(library)


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 3
    assert len(NOTEBOOKS) == 3


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_code_escapes(path: Path) -> None:
    fences = re.findall(r"^([ \t]*(?:```|~~~).*)$", path.read_text(), re.M)
    assert fences == ["```python", "```"] * (len(fences) // 2), f"{path.name}: other blocks are not run"


@pytest.mark.parametrize("code", EXAMPLES)
def test_examples_run(code: str) -> None:
    needs_libraries(code)
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


def written_notebook(page: Path) -> str:
    return runpy.run_path(str(ROOT / "scripts/notebooks.py"))["notebook"](page.read_text())


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_are_what_their_pages_say(path: Path) -> None:
    expected = written_notebook(path.with_suffix(".md"))
    assert path.read_text() == expected, f"{path.name} is old: python scripts/notebooks.py"
    assert not any(cell.get("outputs") for cell in json.loads(expected)["cells"])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_run(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = ["".join(c["source"]) for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]
    needs_libraries("\n".join(cells))
    if all(importlib.util.find_spec(name) for name in ("nbclient", "nbformat", "ipykernel")):
        import fastrnn
        import nbclient
        import nbformat

        # The kernel is another process, which has to find this fastrnn.
        monkeypatch.setenv("PYTHONPATH", str(Path(fastrnn.__file__).parents[1]))
        nbclient.NotebookClient(nbformat.read(path, as_version=4), timeout=120).execute()
    else:
        names: dict[str, object] = {}
        for cell in cells:  # one after the other in one place, as a notebook does
            exec(compile(cell, path.name, "exec"), names)


def test_the_site_has_every_page() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text().split("\nnav:\n")[1].split("\n\n")[0]
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in ROOT.glob("docs/**/*.md")}
    assert set(re.findall(r"\S+\.md$", navigation, re.M)) == pages | {"changelog.md"}


@pytest.mark.parametrize("path", sorted(ROOT.glob("docs/reference/*.md")), ids=lambda path: path.name)
def test_the_reference_names_what_exists(path: Path) -> None:
    names = re.findall(r"^::: (\S+)$", path.read_text(), re.M)
    assert names
    for name in names:
        needs_libraries(name)
        assert pkgutil.resolve_name(name).__doc__, name


def test_the_reference_has_every_public_name() -> None:
    import fastrnn

    pages = "\n".join(path.read_text() for path in ROOT.glob("docs/reference/*.md"))
    listed = set(re.findall(r"^::: fastrnn\.(\w+)$", pages, re.M))
    assert listed >= set(fastrnn.__all__) - {"__version__"}
