"""Write the notebooks of docs/ from the pages of the same name: a cell for each block of code or text.

A page is the source, its notebook is never edited.  Without outputs, notebooks change only when pages do.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGES = ["quick-start", "from-pytorch", "streaming"]


def notebook(markdown: str) -> str:
    """Return the notebook of a page, as the text of its file."""
    cells = []
    for number, part in enumerate(re.split(r"^```python\n(.*?)^```$", markdown, flags=re.M | re.S)):
        kind = "code" if number % 2 else "markdown"
        lines = part.strip().splitlines(keepends=True)
        if lines:
            cell = {"cell_type": kind, "id": f"{kind}-{number}", "metadata": {}, "source": lines}
            cells.append(cell | ({"execution_count": None, "outputs": []} if kind == "code" else {}))
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    content = {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(content, indent=1) + "\n"


if __name__ == "__main__":
    for page in PAGES:
        (DOCS / f"{page}.ipynb").write_text(notebook((DOCS / f"{page}.md").read_text()))
