"""r_format, exactly as defined in the paper's appendix A."""

import re

TAGS = ("<think>", "</think>", "<answer>", "</answer>")
# Matched only against texts with one tag of each kind, so that a lazy `.*?` has a single way to match.
_COMPLETE = re.compile(r"<think>.*?</think>\s*<answer>.*?</answer>", re.DOTALL)


def format_reward(text: str) -> float:
    """Return 1 for one `<think>…</think>` followed by one `<answer>…</answer>` and nothing else.

    Otherwise return 0.5 if the text begins with `<think>` and ends with `</answer>`, 0.25 if only one of these holds,
    and 0 if neither does. Leading and trailing white space is ignored.
    """
    text = text.strip()
    if all(text.count(tag) == 1 for tag in TAGS) and _COMPLETE.fullmatch(text):
        return 1.0
    return {0: 0.0, 1: 0.25, 2: 0.5}[text.startswith("<think>") + text.endswith("</answer>")]
