"""matplotlib's SVG made small, and fit for a page that holds several."""

import re
from xml.etree import ElementTree

from markupsafe import Markup

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
ElementTree.register_namespace("", SVG)
ElementTree.register_namespace("xlink", XLINK)


def small_svg(svg: bytes) -> bytes:
    """The same picture without metadata; its lines are drawn to a tenth of a point, in about half of the bytes."""
    root = ElementTree.fromstring(svg)
    for metadata in root.findall(f"{{{SVG}}}metadata"):
        root.remove(metadata)
    for node in root.iter():
        node.text, node.tail = (node.text or "").strip("\n "), None
        for key, value in node.items():
            if key == "d":
                node.set("d", _short_path(value))
            elif key in ("x", "y"):
                node.set(key, _rounded(value))
    return ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)


def inline_svg(svg: bytes, name: str, title: str) -> Markup:
    """A small one for a page: its ids begin with `name`, it has a title to read out, and a size that follows its container up to
    the natural one."""
    root = ElementTree.fromstring(svg)
    for node in root.iter():
        for key, value in node.items():
            if key == "id":
                node.set("id", f"{name}-{value}")
            elif key in ("clip-path", f"{{{XLINK}}}href"):
                node.set(key, value.replace("#", f"#{name}-", 1))
    width = root.attrib.pop("width")
    del root.attrib["height"]
    root.attrib |= {"style": f"--natural: {width}", "role": "img", "aria-label": title}
    text = ElementTree.tostring(root, encoding="unicode")
    used = set(re.findall(r'#([^")]+)', text))
    return Markup(re.sub(r' id="([^"]+)"', lambda own: own[0] if own[1] in used else "", text))


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
