"""Small made-up data sets in the columns and files of the published ones, for a checkout without `../shared`."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

Rows = Iterable[Mapping[str, Any]]


def write_jsonl(path: Path, rows: Rows) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_parquet(path: Path, rows: Rows) -> Path:
    import pyarrow.parquet  # the environment of the vLLM tests has no pyarrow

    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)
    return path


def gsm8k_row(number: int) -> dict[str, str]:
    boxes, each = 40 + number, 30 + 2 * number
    packed = boxes * each
    question = (
        f"Noor packs {boxes} boxes with {each} lamps in each of them. She sells 8 of the lamps. How many are left?"
    )
    work = f"Noor packs {boxes}*{each}=<<{boxes}*{each}={packed}>>{packed} lamps.\nThen {packed}-8=<<{packed}-8={packed - 8}>>"
    return {"question": question, "answer": f"{work}{packed - 8:,} are left.\n#### {packed - 8:,}"}


def math500_row(number: int, problem: str, answer: str) -> dict[str, Any]:
    return {
        "problem": problem,
        "solution": f"A short look shows that the answer is $\\boxed{{{answer}}}.$",
        "answer": answer,
        "subject": "Algebra",
        "level": 1 + number % 5,
        "unique_id": f"test/algebra/{number}.json",
    }


def aime24_row(number: int, problem: str, answer: str) -> dict[str, Any]:
    return {
        "id": 60 + number,
        "problem": problem,
        "solution": f"We count, and find $\\boxed{{{answer}}}$.",
        "answer": answer,
        "url": f"https://example.org/2024/{number}",
        "year": "2024",
    }


def dapo_row(number: int, question: str, gold: str) -> dict[str, Any]:
    """Return a row of DAPO-Math-17k in the format that verl reads."""
    content = (
        "Solve the following math problem step by step. The last line of your response should be of the form Answer: $Answer "
        f"(without quotes) where $Answer is the answer to the problem.\n\n{question}\n\n"
        'Remember to put your answer on its own line after "Answer:".'
    )
    return {
        "data_source": "math_dapo",
        "prompt": [{"content": content, "role": "user"}],
        "ability": "MATH",
        "reward_model": {"ground_truth": gold, "style": "rule-lighteval/MATH_v2"},
        "extra_info": {"index": f"00000000-0000-4000-8000-{number:012}"},
    }


def processed_dapo_row(number: int, question: str, gold: str) -> dict[str, Any]:
    verl = dapo_row(number, question, gold)
    return {"prompt": question, "solution": gold, "source_prompt": verl["prompt"], **{**verl, "prompt": question}}


def deepmath_row(number: int, question: str, answer: str) -> dict[str, Any]:
    return {
        "question": question,
        "final_answer": answer,
        "difficulty": 4.5 + number / 2,
        "topic": "Mathematics -> Algebra -> Linear Algebra",
        **{f"r1_solution_{n}": f"Okay, so this is try {n}. It is \\boxed{{{answer}}}." for n in (1, 2, 3)},
    }


MATH500 = [
    ("Write the point $(0,-2)$ in polar coordinates.", r"\left( 2, \frac{3 \pi}{2} \right)"),
    ("Solve $4x = 6$.", r"\frac{3}{2}"),
    ("Where is $\\sqrt{x-1}$ defined?", r"[1,\infty)"),
    ("Name the root of $x^2 = 12$ that is positive.", r"2\sqrt{3}"),
    ("Turn the blue card over. What is written on it?", r"\text{odd}"),
    ("How much is left of 15,000 coins?", "12{,}345"),
]
AIME24 = [("How many paths are there?", "025"), ("Find the remainder.", "907"), ("Find $p+q$.", "004")]
AIME25 = [
    ("Find the area.", "588"),
    ("Find the angle in degrees.", r"144^\circ"),
    ("Find the sum.", "16"),
    ("Find $a$.", "70"),
]
DAPO = [("How many cubes have two red faces?", "36"), ("Find the least $n$ with $3^n > 500$.", "6")]
DEEPMATH = [
    (f"What is the determinant of $\\begin{{pmatrix}} {n} & 1 \\\\ 1 & {n} \\end{{pmatrix}}$?", str(n * n - 1))
    for n in range(2, 12)
]


def write_small_data(folder: Path) -> Path:
    """Write the folders of `../shared/data`, and some data sets in the layout of downloads from the hub."""
    for split, numbers in (("train", range(24)), ("test", range(24, 30))):
        rows = [gsm8k_row(number) for number in numbers]
        write_jsonl(folder / "gsm8k" / f"{split}.jsonl", rows)
        write_parquet(folder / "gsm8k-hub" / "main" / f"{split}-00000-of-00001.parquet", rows)
    write_jsonl(folder / "math500" / "test.jsonl", (math500_row(n, *row) for n, row in enumerate(MATH500)))
    write_jsonl(folder / "aime24" / "test.jsonl", (aime24_row(n, *row) for n, row in enumerate(AIME24)))
    tidy = [{"problem": p, "answer": a.removesuffix(r"^\circ"), "id": str(n)} for n, (p, a) in enumerate(AIME25)]
    write_jsonl(folder / "aime25" / "test.jsonl", tidy)
    write_jsonl(folder / "aime25" / "opencompass.jsonl", ({"question": p, "answer": a} for p, a in AIME25))
    write_jsonl(folder / "dapo" / "sample.jsonl", [dapo_row(n, *row) for n, row in enumerate(DAPO)] * 3)
    write_jsonl(folder / "dapo" / "processed_sample.jsonl", (processed_dapo_row(n, *row) for n, row in enumerate(DAPO)))
    write_jsonl(folder / "deepmath" / "sample.jsonl", (deepmath_row(n, *row) for n, row in enumerate(DEEPMATH)))
    for name, cases in RECORDED.items():
        write_jsonl(folder / "outputs" / f"{name}.jsonl", cases)
    return folder


def _case(line: int, gold: str | list[str], prediction: str, expected: float | None, **more: Any) -> dict[str, Any]:
    where = {"source": "made up", "file": "tests/test_cases.py", "line": line, "test": f"test_{line}"}
    return {**where, **more, "gold": gold, "prediction": prediction, "expected": expected}


# The verdict of each kind is known: by arithmetic, or because only the gold is written.
RECORDED: dict[str, list[dict[str, Any]]] = {
    "gsm8k_example_solutions": [
        {
            "source": "made up",
            "gold": "1,204",
            "prediction": f"Each has 301, so 4*301=<<4*301={given}>>{given} in all\nA: {given}",
            "correct": given == "1204",
            "gsm8k_test_index": index,
        }
        for index, given in enumerate(("1204", "1203", "-1204"))
    ],
    "math_verify_cases": [
        _case(1, "$-7$", "-7", 1, match_types=["expr"]),
        _case(2, r"$\frac{3}{8}$", r"It is $\frac{6}{16}$.", 1, match_types=["latex"]),
        _case(3, "$[0,2)$", r"\boxed{(0,2]}", 0, match_types=["latex"], options={"strict": True}),
        _case(4, "8", "So it is 9.", 0, match_types=None),
    ],
    "peer_reward_cases": [
        _case(1, "12", "The answer is 12", 1.0, fn="reward"),
        _case(2, ["3", "5"], r"\boxed{5}", 1.0, fn="reward"),
        _case(3, "12", "The answer is 21", 0.0, fn="reward"),
        _case(4, "", "12", None, fn="reward"),
    ],
}
