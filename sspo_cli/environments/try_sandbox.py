"""Run your own programs in the sandbox: `python -m sspo_cli.environments.try_sandbox < episodes.json`.

Reads {"episodes": [{"turns": [code, …], "gold": …, "solution": …|null}, …]} from standard input, opens all episodes
together, runs turn 0 of all, then turn 1 of all, and so on, and writes
{"episodes": [{"turns": [{"text", "status", "seconds"}, …], "correct": true|false|null}, …]}.

`correct` is true if the solution equals the gold: texts and numbers are compared by the checker of mathematical answers,
lists as sets of values. It is null if there is no solution or no gold.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from sspo_cli.environments.checks import check_proposals
from sspo_cli.environments.denotations import joined
from sspo_cli.environments.sandbox import Interpreter, Sandbox, SandboxFailure, SandboxLimits
from sspo_cli.errors import UserError
from sspo_cli.rewards import AnswerChecker
from sspo_cli.types import Problem

SEED = 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the episodes and return the exit status: 0, or 1 after an error message."""
    defaults = SandboxLimits()
    parser = argparse.ArgumentParser(prog="python -m sspo_cli.environments.try_sandbox", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--call-timeout", type=float, default=defaults.call_timeout, help="seconds (%(default)g)")
    parser.add_argument(
        "--memory-mib", type=int, default=defaults.memory_mib, help="memory of one episode (%(default)d)"
    )
    parser.add_argument(
        "--output-chars",
        type=int,
        default=defaults.output_chars,
        help="characters of one turn's output (%(default)d)",
    )
    parser.add_argument("--parallel", type=int, help="turns that run at the same time (number of cores)")
    options = parser.parse_args(arguments)
    try:
        if min(options.call_timeout, options.memory_mib, options.output_chars, options.parallel or 1) <= 0:
            raise UserError("limits of the sandbox must be positive")
        with Sandbox(SandboxLimits(**vars(options))) as sandbox:  # started before any gold is read
            episodes = _read(sys.stdin.read())
            turns = _play(sandbox, [episode["turns"] for episode in episodes])
        verdicts = _verdicts(episodes)
    except (UserError, SandboxFailure) as error:
        print(error, file=sys.stderr)
        return 1
    played = [{"turns": of, "correct": correct} for of, correct in zip(turns, verdicts, strict=True)]
    json.dump({"episodes": played}, sys.stdout, ensure_ascii=True)
    print()
    return 0


def _read(text: str) -> list[dict[str, Any]]:
    """Parse the episodes. Raises UserError if the text does not have the form in the module's docstring."""
    try:
        given = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"standard input is not valid JSON: {error}") from None
    episodes = given.get("episodes") if isinstance(given, dict) else None
    if not isinstance(episodes, list):
        raise UserError('standard input must be an object {"episodes": […]}')
    for number, episode in enumerate(episodes):
        turns = episode.get("turns") if isinstance(episode, dict) else None
        if not isinstance(turns, list) or not all(isinstance(code, str) for code in turns):
            raise UserError(f"episode {number} must be an object whose `turns` is a list of texts")
    return episodes


def _play(sandbox: Sandbox, programs: Sequence[Sequence[str]]) -> list[list[dict[str, object]]]:
    interpreters: list[Interpreter] = [sandbox.open(None, SEED) for _ in programs]
    played: list[list[dict[str, object]]] = [[] for _ in programs]
    for turn in range(max(map(len, programs), default=0)):
        live = [number for number, codes in enumerate(programs) if turn < len(codes)]
        results = sandbox.run([(interpreters[number], programs[number][turn]) for number in live])
        for number, result in zip(live, results, strict=True):
            played[number].append({"text": result.text, "status": result.status, "seconds": round(result.seconds, 4)})
        sandbox.close(interpreters[number] for number in live if turn + 1 == len(programs[number]))
    return played


def _verdicts(episodes: Sequence[dict[str, Any]]) -> list[bool | None]:
    decided = [
        number
        for number, episode in enumerate(episodes)
        if episode.get("solution") is not None and episode.get("gold") is not None
    ]
    proposals = [(str(episodes[number]["solution"]), _problem(number, episodes[number]["gold"])) for number in decided]
    verdicts: list[bool | None] = [None] * len(episodes)
    with AnswerChecker() as checker:
        for number, verdict in zip(decided, check_proposals(proposals, checker), strict=True):
            verdicts[number] = verdict.equal
    return verdicts


def _problem(number: int, gold: object) -> Problem:
    if isinstance(gold, list):
        return Problem(str(number), "", joined(map(str, gold)), "try_sandbox", check="denotation")
    return Problem(str(number), "", str(gold), "try_sandbox")


if __name__ == "__main__":
    sys.exit(main())
