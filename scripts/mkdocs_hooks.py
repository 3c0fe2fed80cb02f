"""What the documentation site needs beyond mkdocs: the changelog, links out of docs/, formulas, docstrings.

The documents are read in the repository, too, where a link may lead to any file of it and $...$ is a formula.
"""

from __future__ import annotations

import html
import posixpath
import re
from typing import Any

import griffe
from latex2mathml.converter import convert
from mkdocs.structure.files import File

FROM_THE_ROOT = {"CHANGELOG.md": "changelog.md"}
"""Files outside docs/ that are pages."""


def on_files(files: Any, config: Any) -> Any:
    """Add the pages whose files lie outside docs/."""
    root = posixpath.dirname(config.config_file_path)
    for source, page in FROM_THE_ROOT.items():
        files.append(File.generated(config, page, abs_src_path=posixpath.join(root, source)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Lead links to such a file to its page, and leave of links to other files outside docs/ the text."""
    folder = posixpath.join("docs", posixpath.dirname(page.file.src_uri))

    def resolve(match: re.Match[str]) -> str:
        text, target = match.groups()
        path = posixpath.normpath(posixpath.join(folder, target))
        if path in FROM_THE_ROOT:
            return f"[{text}]({posixpath.relpath(FROM_THE_ROOT[path], folder.removeprefix('docs/'))})"
        return text if not path.startswith("docs/") else match[0]

    return re.sub(r"(?<!!)\[([^][]*)\]\((\.\./[^)#:]+)\)", resolve, markdown)


def on_page_content(content: str, **_: Any) -> str:
    """Make MathML of the formulas: browsers draw it, without a script."""

    def formula(match: re.Match[str]) -> str:
        latex = html.unescape(match["latex"]).strip()[2:-2]  # without its delimiters
        latex = latex.replace("{aligned}", "{split}")  # the name that the converter knows
        display = "block" if match["tag"] == "div" else "inline"
        return f"<{match['tag']}>{convert(latex.strip(), display=display)}</{match['tag']}>"

    wrapped = r'<(?P<tag>div|span) class="arithmatex">(?P<latex>.*?)</(?P=tag)>'
    return re.sub(wrapped, formula, content, flags=re.S)


class Markdown(griffe.Extension):
    """Writes as Markdown what docstrings have of reStructuredText: blocks after ``::``, and references."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change the docstring of one object."""
        if obj.docstring:
            text = re.sub(r"^(\s*)::$", r"\1", obj.docstring.value, flags=re.M)
            text = re.sub(r"(?<=[\w)])::$", ":", text, flags=re.M)
            text = re.sub(r"\[(\d+)\]_", r"[\1]", text)
            obj.docstring.value = re.sub(r"^\.\. (\[\d+\] )", r"- \1", text, flags=re.M)
            if obj.path.startswith("fastrnn.torch."):  # torch.nn's arguments are its *args
                options = {"warn_unknown_params": False}
                obj.docstring.parser_options = {**obj.docstring.parser_options, **options}
