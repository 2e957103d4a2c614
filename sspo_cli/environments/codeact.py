"""Code-acting as in CodeActInstruct and MINT: Python in `<execute>`, answers in `<solution>`, observations after turns."""

from collections.abc import Iterable, Sequence

from sspo_cli.environments.actions import CALL, PROPOSAL
from sspo_cli.environments.calls import SandboxFailure, SetupFailed
from sspo_cli.environments.environment import ActingEnvironment
from sspo_cli.environments.episode import Episode, EpisodeLimits
from sspo_cli.environments.result import Result
from sspo_cli.environments.sandbox import Sandbox
from sspo_cli.errors import UserError
from sspo_cli.rewards import AnswerChecker
from sspo_cli.types import Turn

# The data set's prompt, in the variant without tools, because no tools are available here.
_SYSTEM = """\
You are a helpful assistant assigned with the task of problem-solving. To achieve this, you will be using an interactive \
coding environment equipped with a variety of tool functions to assist you throughout the process.

At each turn, you should first provide your step-by-step thinking for solving the task. After that, you have two options:

1) Interact with a Python programming environment and receive the corresponding output. Your code should be enclosed using \
"<execute>" tag, for example: <execute> print("Hello World!") </execute>.
2) Directly provide a solution that adheres to the required format for the given task. Your solution should be enclosed using \
"<solution>" tag, for example: The answer is <solution> A </solution>.

You have {turns} chances to interact with the environment or propose a solution. You can only propose a solution {proposals} \
times."""
_NO_OUTPUT = "[Executed Successfully with No Output]"
_WRONG = "Your answer is wrong."
_NO_ACTION = (  # verbatim, including white space
    "I don't understand your input. \n"
    "If you want to execute code, please use <execute> YOUR_CODE_HERE </execute>.\n"
    "If you want to give me an answer, please use <solution> YOUR_SOLUTION_HERE </solution>.\n"
    "For example: The answer to the question is <solution> 42 </solution>. \n"
)
_LAST = "You should take the last step to propose a solution."


class CodeActEnvironment(ActingEnvironment):
    """An environment in which each episode has a Python session in a sandbox. The caller starts and ends the sandbox."""

    def __init__(self, sandbox: Sandbox, checker: AnswerChecker, limits: EpisodeLimits | None = None) -> None:
        super().__init__(checker, limits or EpisodeLimits())
        self._sandbox = sandbox
        self.system_prompt = _SYSTEM.format(turns=self.limits.turns, proposals=self.limits.proposals)

    @property
    def sandbox_failures(self) -> int:
        """Return the number of times that the sandbox was lost and restarted."""
        return self._sandbox.failures

    def close(self, episodes: Iterable[Episode]) -> None:
        """End the interpreters of episodes that will not take another turn."""
        self._sandbox.close(episode.session for episode in episodes)

    def _begin(self, episode: Episode) -> None:
        episode.session = self._sandbox.open(episode.problem.setup, episode.seed, episode.cells)

    def _run(self, calls: Sequence[tuple[Episode, str]]) -> list[Result]:
        try:
            return self._sandbox.run([(episode.session, code) for episode, code in calls])
        except BaseException as error:
            problems = {id(episode.session): episode.problem for episode, _ in calls}
            self.close(episode for episode, _ in calls)
            for episode, _ in calls:  # undo the turn of every episode, even if its code has already run
                self._begin(episode)
            if isinstance(error, SetupFailed):
                problem = problems[id(error.interpreter)]
                raise UserError(
                    f"the setup of problem {problem.id} of {problem.task} fails ({error}); correct it or leave the problem out"
                ) from None
            if isinstance(error, SandboxFailure):
                raise UserError(
                    f"{error}, so this turn has no results; no progress is lost, because --resume continues from the saved state"
                ) from None
            raise

    def _answer(self, episode: Episode, turn: Turn, output: str) -> str:
        said = {CALL: output.strip() or _NO_OUTPUT, PROPOSAL: _WRONG}.get(turn.action, _NO_ACTION)
        left = (
            f"You have {episode.turns_left} steps left and {episode.proposals_left} chances to propose solution left."
        )
        return "\n".join(["Observation:", said, left, *([_LAST] if episode.turns_left <= 1 else [])])
