"""The report as one self-contained page: no network, no other file. What runs have written is text in it, never markup."""

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from importlib import resources
from typing import Any
from xml.etree import ElementTree

import jinja2
from markupsafe import Markup, escape

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"


def template(name: str, **filters: Any) -> jinja2.Template:
    """One of the package's templates; those of HTML escape what is put into them."""
    environment = jinja2.Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=name.endswith(".html.jinja"),
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(filters)
    return environment.from_string(_resource(name))


def html_page(*, tables: str, runs: str, completions: Sequence[dict[str, Any]], **parts: Any) -> str:
    """The page. `tables` and `runs` are markup that is already safe; `completions` as by `sample_completions`; the other parts
    are those that page.html.jinja names."""
    script = Markup(_resource("page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return template("page.html.jinja", code=code).render(
        css=Markup(_resource("page.css")),
        script=script,
        script_hash=f"sha256-{digest}",  # no other script may run, not even one that got past all escaping
        tables=_scrollable(tables),
        runs=_scrollable(runs),
        browser=json_for_script(completions) if completions else None,
        **parts,
    )


def json_for_script(value: Any) -> Markup:
    """JSON that cannot end the <script> element it stands in, nor open a comment there."""
    return Markup(json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c"))


def code(text: str) -> Markup:
    """Plain text whose `code` stands in backticks."""
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def inline_svg(svg: bytes, name: str, title: str) -> Markup:
    """matplotlib's SVG for a page that holds several: ids that begin with `name`, a title to read out, a size that follows its
    container up to the natural one, and no metadata. Its lines are drawn to a tenth of a point, a third of the bytes."""
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", XLINK)
    root = ElementTree.fromstring(svg)
    for metadata in root.findall(f"{{{SVG}}}metadata"):
        root.remove(metadata)
    for node in root.iter():
        node.text, node.tail = (node.text or "").strip("\n "), None
        for key, value in node.items():
            if key == "id":
                node.set("id", f"{name}-{value}")
            elif key in ("clip-path", f"{{{XLINK}}}href"):
                node.set(key, value.replace("#", f"#{name}-", 1))
            elif key == "d":
                node.set("d", _short_path(value))
            elif key in ("x", "y"):
                node.set(key, _rounded(value))
    width = root.attrib.pop("width")
    del root.attrib["height"]
    root.attrib |= {"style": f"--natural: {width}", "role": "img", "aria-label": title}
    text = ElementTree.tostring(root, encoding="unicode")
    used = set(re.findall(r'#([^")]+)', text))
    return Markup(re.sub(r' id="([^"]+)"', lambda own: own[0] if own[1] in used else "", text))


def _scrollable(tables: str) -> Markup:
    return Markup(tables.replace("<table>", '<div class="scroll"><table>').replace("</table>", "</table></div>"))


def _rounded(numbers: str) -> str:
    return re.sub(r"-?\d+\.\d+", lambda number: f"{float(number[0]):.1f}".removesuffix(".0"), numbers)


def _short_path(path: str) -> str:
    """Rounded; lines as steps from point to point, which take half the bytes of places. What follows an `m` is a line."""
    if re.search("[A-KN-Yac-y]", path):  # curves
        return " ".join(_rounded(path).split())
    x = y = 0  # in tenths of a point
    short = []
    for letter, first, second in re.findall(r"([MLz])\s*(?:(\S+)\s+(\S+))?", path):
        if letter == "z":
            short.append("z")
            continue
        to_x, to_y = round(10 * float(first)), round(10 * float(second))
        place = f"M{to_x / 10:g} {to_y / 10:g}m0 0" if letter == "M" else f" {(to_x - x) / 10:g} {(to_y - y) / 10:g}"
        short.append(place)
        x, y = to_x, to_y
    return "".join(short)


def _resource(name: str) -> str:
    return resources.files("sspo_cli.report").joinpath(name).read_text(encoding="utf-8")
