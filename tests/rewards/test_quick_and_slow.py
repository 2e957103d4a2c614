"""Quick verdicts agree with those of computer algebra, on numbers in any spelling."""

from fractions import Fraction

from hypothesis import given, settings
from hypothesis import strategies as st

from sspo_cli.rewards.equality import equal
from sspo_cli.rewards.quick import prepared, quick_verdict

VALUES = [
    Fraction(n, d) for n in (0, 1, -1, 3, 7, 35, 1000, 1234567, 567, 612) for d in (1, 2, 3, 8, 100, 10**8, 10**22)
]


def spellings(value: Fraction) -> list[str]:
    n, d = value.numerator, value.denominator
    texts = [f"\\frac{{{n}}}{{{d}}}", f"{n}/{d}"] if d > 1 else [str(n), f"{n:,}", f"+{n}" if n >= 0 else f"- {-n}"]
    digits = next((k for k in range(40) if 10**k % d == 0), None)
    if digits:
        sign, whole = "-" * (n < 0), f"{abs(n) * 10**digits // d:0{digits + 1}d}"
        texts += [f"{sign}{whole[:-digits]}.{whole[-digits:]}", f"{sign}{whole} \\times 10^{{-{digits}}}"]
        texts.append(f"{sign}{whole[:-digits]}.{whole[-digits:]}00")
    else:
        texts += [f"{float(value):.{places}f}" for places in (2, 6, 15)]
    if digits is not None:
        percent = value * 100
        if percent.denominator == 1:
            texts.append(f"{percent}\\%")
    return texts


SPELLINGS = st.sampled_from(VALUES).flatmap(lambda value: st.sampled_from(spellings(value)))


@settings(max_examples=150, deadline=None)
@given(SPELLINGS, SPELLINGS)
def test_quick_and_slow_agree_on_numbers(prediction, gold):
    prediction, gold = prepared(prediction, gold)
    verdict = quick_verdict(prediction, gold)
    assert verdict in (True, False)
    assert equal(prediction, gold, limit=60.0) is verdict


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(VALUES).flatmap(lambda value: st.tuples(*[st.sampled_from(spellings(value))] * 2)))
def test_exact_spellings_of_a_value_are_equal_both_ways(pair):
    if not any("." in text for text in pair):
        assert quick_verdict(*prepared(*pair)) is quick_verdict(*prepared(*pair[::-1])) is True
