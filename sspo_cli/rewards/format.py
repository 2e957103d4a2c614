"""r_format, literally as in the paper's appendix A."""

import re

TAGS = ("<think>", "</think>", "<answer>", "</answer>")
# Each tag occurs once where this is asked, so a lazy `.*?` has one way to match.
_COMPLETE = re.compile(r"<think>.*?</think>\s*<answer>.*?</answer>", re.DOTALL)


def format_reward(text: str) -> float:
    """Return 1 for one `<think>…</think>` and one `<answer>…</answer>` and nothing else.

    Otherwise 0.5 if only both edge tags are right, 0.25 if one of them is, else 0. Outer white space does not count.
    """
    text = text.strip()
    if all(text.count(tag) == 1 for tag in TAGS) and _COMPLETE.fullmatch(text):
        return 1.0
    return {0: 0.0, 1: 0.25, 2: 0.5}[text.startswith("<think>") + text.endswith("</answer>")]
