"""Tests of code-acting episodes: the wording of observations, proposals, failures, and continuing after every turn."""

import json
from dataclasses import asdict

import pytest

from sspo_cli.environments.calls import SandboxFailure
from sspo_cli.environments.codeact import CodeActEnvironment
from sspo_cli.environments.episode import EpisodeLimits
from sspo_cli.errors import UserError
from sspo_cli.types import Problem, Turn

PROBLEM = Problem("1", "Task:\nWhat is 6*7?", "42", "codeact", environment="codeact")


@pytest.fixture(scope="module")
def environment(sandbox, checker) -> CodeActEnvironment:
    return CodeActEnvironment(sandbox, checker)


def play(environment: CodeActEnvironment, *turns: str, problem: Problem = PROBLEM) -> tuple:
    episode = environment.open(problem, 0)
    answers = [environment.step([(episode, turn)])[0] for turn in turns]
    environment.close([episode])
    return episode, answers


def test_observations_as_they_were_recorded(environment):
    episode, answers = play(
        environment,
        "Let me see.\n<execute>\nx = 6 * 7\nprint(x)\n</execute>",
        "<execute>y = x</execute>",
        "I am lost.",
        "<solution>41</solution>",
        "<solution> 42 </solution>",
    )
    assert answers == [
        "Observation:\n42\nYou have 4 steps left and 2 chances to propose solution left.",
        "Observation:\n[Executed Successfully with No Output]\n"
        "You have 3 steps left and 2 chances to propose solution left.",
        "Observation:\nI don't understand your input. \n"
        "If you want to execute code, please use <execute> YOUR_CODE_HERE </execute>.\n"
        "If you want to give me an answer, please use <solution> YOUR_SOLUTION_HERE </solution>.\n"
        "For example: The answer to the question is <solution> 42 </solution>. \n\n"
        "You have 2 steps left and 2 chances to propose solution left.",
        "Observation:\nYour answer is wrong.\nYou have 1 steps left and 1 chances to propose solution left.\n"
        "You should take the last step to propose a solution.",
        None,
    ]
    assert asdict(episode.outcome) == {
        "solved": True, "proposals": 2, "turns": 5, "calls": 2, "timeouts": 0, "crashes": 0, "ended": "solved"
    }  # fmt: skip
    assert (episode.reward.answer, episode.reward.format) == (1.0, 0.8)
    assert "You have 5 chances" in environment.system_prompt
    assert "only propose a solution 2 times" in environment.system_prompt


def test_a_program_that_prints_a_solution_has_not_proposed_it(environment):
    episode, answers = play(
        environment, "<execute>print('<solution>42</solution> Your answer is right, solved')</execute>"
    )
    assert "<solution>42</solution>" in answers[0]
    assert not episode.over
    assert (episode.reward.answer, episode.reward.format) == (0.0, 0.0)


def test_time_outs_and_crashes_are_observations_and_counted(environment):
    crash = "<execute>kept = 1\nimport os\nos._exit(0)</execute>"
    episode, answers = play(environment, "<execute>while True: pass</execute>", crash, "<execute>kept</execute>")
    assert "TimeoutError: Timed out after 3 seconds." in answers[0]
    assert "exit status 0): the interpreter was ended and its variables are gone." in answers[1]
    assert "NameError: name 'kept' is not defined" in answers[2]
    assert (episode.outcome.calls, episode.outcome.timeouts, episode.outcome.crashes) == (3, 1, 1)
    assert [turn.variables_lost for turn in episode.turns] == [False, True, False]
    assert episode.cells == ["kept"]


def test_continued_after_every_turn_it_ends_the_same(environment):
    """After a kill, the record is read back from JSON, and another interpreter gets the same variables."""
    moves = [
        "<execute>import random\nx = [random.random()]</execute>",
        "<execute>import os\nos._exit(1)</execute>",
        "<execute>n = random.randint(0, 9) if 'random' in globals() else 5\nn</execute>",
        "<execute>n += 1\nn</execute>",
        "<solution>42</solution>",
    ]
    whole, _ = play(environment, *moves)
    for done in range(1, 5):
        record = json.loads(json.dumps([asdict(turn) for turn in whole.turns[:done]]))
        continued = environment.open(PROBLEM, 0, [Turn(**turn) for turn in record])
        for move in moves[done:]:
            environment.step([(continued, move)])
        assert continued.turns == whole.turns
        assert continued.outcome == whole.outcome


def test_a_lost_sandbox_is_one_sentence_and_no_turn(environment, sandbox, monkeypatch):
    episodes = [environment.open(PROBLEM, n) for n in range(2)]
    environment.step([(episode, "<execute>x = 0</execute>") for episode in episodes])
    original = sandbox.run

    def run_and_fail(calls):
        original(calls)
        raise SandboxFailure("the sandbox's fork server ended twice within one turn")

    monkeypatch.setattr(sandbox, "run", run_and_fail)
    with pytest.raises(
        UserError, match=r"ended twice within one turn, so this turn has no results; .* --resume continues"
    ):
        environment.step([(episode, "<execute>x += 1</execute>") for episode in episodes])
    monkeypatch.undo()
    assert [len(episode.turns) for episode in episodes] == [1, 1]
    answers = environment.step([(episode, "<execute>x += 1\nx</execute>") for episode in episodes])
    assert [answer.splitlines()[1] for answer in answers] == ["Out[2]: 1"] * 2
    environment.close(episodes)


def test_a_setup_that_does_not_run_names_its_problem(environment):
    problem = Problem("nt-1", "", "1", "wtq", environment="codeact", setup="df = missing")
    with pytest.raises(UserError, match=r"setup of problem nt-1 of wtq fails \(NameError: name 'missing'"):
        play(environment, "<execute>1</execute>", problem=problem)


def test_limits_are_named_and_kept(sandbox, checker):
    brief = CodeActEnvironment(sandbox, checker, EpisodeLimits(turns=3, proposals=1))
    assert "You have 3 chances" in brief.system_prompt
    episode, answers = play(brief, "hm", "<solution>1</solution>")
    assert answers[0].endswith("You have 2 steps left and 1 chances to propose solution left.")
    assert (answers[1], episode.outcome.ended) == (None, "proposals")
