"""Ranks that exchange a little, as a run does, until one of them fails, the second if only one does: `failing.py KIND FOLDER`."""

import ctypes
import os
import signal
import sys
import time
from pathlib import Path

from sspo_cli import cli, ranks
from sspo_cli.errors import UserError


def refuse() -> list[str]:
    if ranks.rank() == 1:
        raise UserError("there is no such file; name another")
    return ["done"]


def caught(work) -> str:
    try:
        work()
    except UserError as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def check_exchanges(folder: Path) -> None:
    """Check that an error of one rank is raised by all, and that they continue together."""

    def no_room() -> None:
        raise UserError("no room")

    sentences = [caught(lambda: ranks.gather(refuse)), caught(lambda: ranks.on_first(no_room))]
    mine = ranks.share(5)
    sentences += ranks.gather(lambda: [str(number) for number in range(5)[mine]])
    sentences.append(str(ranks.on_first(lambda: ranks.on_first(lambda: "within"))))
    sentences.append(str(ranks.anywhere(ranks.rank() == 1)))
    sentences.append(str(ranks.total(1.0 + ranks.rank())))
    (folder / f"rank-{ranks.rank()}").write_text("\n".join(sentences))


def long_work() -> str:
    """Work for a second longer than ranks wait for one another."""
    until = time.monotonic() + ranks.joining.patience() + 1
    while time.monotonic() < until:
        time.sleep(0.1)
        ranks.still_working()
    return "whole"


def fail(kind: str) -> None:
    match kind:
        case "refused":
            raise UserError("the GPU's memory is full; ask for less")
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "stopped":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "stuck":  # in a call that lets no other thread run
            ctypes.PyDLL(None).sleep(1000)
        case "late":
            time.sleep(1000)
        case "signal":
            os.kill(os.getppid(), signal.SIGTERM)
        case "bug" | "bug of all":
            raise KeyError("a mistake")


def run(**options: object) -> None:
    kind, folder = sys.argv[1], Path(sys.argv[2])
    is_second = os.environ["RANK"] == "1"
    if kind == "early" and is_second:
        raise UserError("there is no such config")
    program = {"sspo": "0.0.1" if kind == "other program" and is_second else "0.1.0", "torch": "2.13.0"}
    ranks.start("cpu", program)
    if kind == "refused":
        check_exchanges(folder)
    if kind == "other options":
        ranks.require_agreement("other options", {"seed": ranks.rank(), "steps": 9}, "give all the same")
    if kind == "late":
        assert ranks.on_first(long_work) == "whole"
    with ranks.explained_loss("--resume continues"):
        if kind == "alone":
            ranks.on_first(lambda: time.sleep(1000))
        for turn in range(1000):
            if turn == 5 and (is_second or kind == "bug of all"):
                fail(kind)
            ranks.anywhere(False)
            time.sleep(0.02)


cli.app = run
cli.main()
