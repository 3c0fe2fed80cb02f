"""What the documentation site needs beyond mkdocs: the changelog, links out of docs/, formulas, docstrings.

The documents are read in the repository, too, where a link may lead to any file of it and $...$ is a formula.
"""

from __future__ import annotations

import html
import posixpath
import re
from collections.abc import Iterator
from typing import Any

import griffe
from latex2mathml.converter import convert
from mkdocs.structure.files import File

FROM_THE_ROOT = {"CHANGELOG.md": "changelog.md"}
"""Files outside docs/ that are pages."""

CLASSES = {"LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell", "Stream"}
"""Names of fastrnn itself that docstrings of its parts use alone."""


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
    """Make MathML of the formulas, which browsers draw without a script; lead from a picture to its file."""

    def formula(match: re.Match[str]) -> str:
        latex = html.unescape(match["latex"]).strip()[2:-2]  # without its delimiters
        latex = latex.replace("{aligned}", "{split}")  # the name that the converter knows
        display = "block" if match["tag"] == "div" else "inline"
        return f"{match['begin']}{convert(latex.strip(), display=display)}</{match['tag']}>"

    wrapped = r'(?P<begin><(?P<tag>div|span) class="arithmatex">)(?P<latex>.*?)</(?P=tag)>'
    content = re.sub(wrapped, formula, content, flags=re.S)
    return re.sub(r'<img [^>]*src="([^"]+)"[^>]*>', r'<a href="\1">\g<0></a>', content)


def documented(obj: griffe.Object) -> Iterator[griffe.Object]:
    """Yield an object and all that is defined in it, with a docstring."""
    if obj.docstring:
        yield obj
    for member in obj.members.values():
        if not member.is_alias:
            yield from documented(member)


class Markdown(griffe.Extension):
    """Writes as Markdown what docstrings have of reStructuredText: blocks after ``::``, and references."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Change the docstrings of a package, once all that they refer to is known."""
        public = {
            module.path: set(module.exports or ())
            for module in [pkg, *pkg.modules.values()]
            if not module.is_alias
        }
        for obj in documented(pkg):
            self.change(obj, public)

    def change(self, obj: griffe.Object, public: dict[str, set[str]]) -> None:
        """Change the docstring of one object; `public` has the names that each module exports."""
        text = re.sub(r"^(\s*)::$", r"\1", obj.docstring.value, flags=re.M)
        text = re.sub(r"(?<=[\w)])::$", ":", text, flags=re.M)
        text = re.sub(r"\[(\d+)\]_", r"[\1]", text)
        text = re.sub(r"^\.\. (\[\d+\] )", r"- \1", text, flags=re.M)
        home = ".".join(obj.path.split(".")[:2])

        def link(match: re.Match[str]) -> str:
            name = match[1]
            if name.startswith("fastrnn."):
                path = name
            elif name in public.get(home, ()):
                path = f"{home}.{name}"
            elif name in CLASSES:
                path = f"fastrnn.{name}"
            else:
                return match[0]
            return match[0] if path == obj.path else f"[`{name}`][{path}]"

        obj.docstring.value = re.sub(r"(?<![`\w])`([\w.]+)`(?!`)", link, text)
        if not obj.is_class:
            return
        if "__init__" not in obj.members:  # its arguments are those of a base that is not read
            options = {"warn_unknown_params": False}
            obj.docstring.parser_options = {**obj.docstring.parser_options, **options}
        elif "Parameters\n" not in text:  # functions make it
            obj.del_member("__init__")
