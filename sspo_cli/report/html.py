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
    """Load one of the package's templates; HTML templates escape their values."""
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
    """Render the page from `sample_completions`, `sample_answers` and the other values that page.html.jinja needs."""
    script = Markup(_resource("page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return template("page.html.jinja", code=code).render(
        css=Markup(_resource("page.css")),
        script=script,
        script_hash=f"sha256-{digest}",  # the browser runs no other script, even if text from a run were not escaped
        browser=json_for_script(completions) if completions else None,
        answers=json_for_script(answers) if answers["sources"] else None,
        **parts,
    )


def html_of(tables: Iterable[Table]) -> Markup:
    """Render tables, each in a box that scrolls."""
    text = "".join(table.to_html() for table in tables)
    return Markup(text.replace("<table>", '<div class="scroll"><table>').replace("</table>", "</table></div>"))


def inline_svg(svg: bytes, name: str, title: str) -> Markup:
    """Convert matplotlib's SVG to an element of a page. Its ids begin with `name`, so that they are unique in the page.

    The element has a title for screen readers. It shrinks with its container, and does not grow beyond its natural size.
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
    """Encode JSON so that it cannot end its <script> element or open a comment."""
    return Markup(json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c"))


def code(text: str) -> Markup:
    """Convert plain text with `code` in backticks to markup."""
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _resource(name: str) -> str:
    return resources.files("sspo_cli.report").joinpath(name).read_text(encoding="utf-8")
