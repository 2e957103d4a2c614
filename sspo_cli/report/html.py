"""The report as one self-contained page without network access. Text from runs is escaped and never becomes markup."""

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from importlib import resources
from typing import Any
from xml.etree import ElementTree

import jinja2
from markupsafe import Markup, escape

from sspo_cli.report.table import Table

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
ElementTree.register_namespace("", SVG)
ElementTree.register_namespace("xlink", XLINK)


def template(name: str, **filters: Any) -> jinja2.Template:
    """Load a template of this package by file name. HTML templates escape the inserted values."""
    environment = jinja2.Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=name.endswith(".html.jinja"),
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(filters)
    return environment.from_string(_resource(name))


def html_page(*, completions: Sequence[dict[str, Any]], answers: dict[str, Any], **parts: Any) -> str:
    """Render the page from the results of `sample_completions` and `sample_answers`, and the `parts` of page.html.jinja."""
    script = Markup(_resource("page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return template("page.html.jinja", code=code).render(
        css=Markup(_resource("page.css")),
        script=script,
        script_hash=f"sha256-{digest}",  # the browser runs only this script, even if text from a run were not escaped
        browser=json_for_script(completions) if completions else None,
        answers=json_for_script(answers) if answers["sources"] else None,
        **parts,
    )


def html_of(tables: Iterable[Table]) -> Markup:
    """Render tables as HTML, each in a scrollable box."""
    text = "".join(table.to_html() for table in tables)
    return Markup(text.replace("<table>", '<div class="scroll"><table>').replace("</table>", "</table></div>"))


def inline_svg(svg: bytes, name: str, title: str) -> Markup:
    """Convert matplotlib's SVG to an <svg> element. All ids get the prefix `name`, so that they are unique in the page.

    `title` is the label for screen readers. The element shrinks with its container, but does not grow beyond its natural size.
    """
    root = ElementTree.fromstring(svg)
    for node in root.iter():
        for key, value in node.items():
            if key == "id":
                node.set(key, f"{name}-{value}")
            elif key in ("clip-path", f"{{{XLINK}}}href"):
                node.set(key, value.replace("#", f"#{name}-", 1))
    width = root.attrib.pop("width")
    del root.attrib["height"]
    root.attrib |= {"style": f"--natural: {width}", "role": "img", "aria-label": title}
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def json_for_script(value: Any) -> Markup:
    """Encode a value as JSON that cannot end its <script> element or open a comment."""
    return Markup(json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c"))


def code(text: str) -> Markup:
    """Convert plain text to HTML. Text in backticks becomes a <code> element."""
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _resource(name: str) -> str:
    return resources.files("sspo_cli.report").joinpath(name).read_text(encoding="utf-8")
