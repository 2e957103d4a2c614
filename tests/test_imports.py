"""Imports between the rooms, the packages of sspo_cli, go one way, and light rooms import nothing heavy."""

import ast
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "sspo_cli"
# A room may import those on earlier lines. Rooms on one line do not import each other.
ORDER = [
    {"types", "interruption"},
    {"errors"},
    {"redaction", "seeds", "plugins", "locks", "launchers", "statistics"},
    {"ranks"},
    {"supervisor"},
    {"objectives", "rewards"},
    {"tasks"},
    {"environments", "config"},
    {"policy", "tracking"},
    {"rollout", "named_runs"},
    {"preflight", "model_check", "forks"},
    {"evaluation", "report"},
    {"sweep", "memory"},
    {"run"},
    {"train", "examination", "export", "parameters"},
    {"session", "usage", "small_commands", "starting"},
    {"preview"},
    {"cli"},
    {"__main__"},
]
LEVEL = {room: level for level, rooms in enumerate(ORDER) for room in rooms}


def room_of(file: Path) -> str:
    return file.relative_to(PACKAGE).with_suffix("").parts[0]


def test_imports_go_one_way():
    wrong = []
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                module = node.module or ""
                modules += [f"{module}.{a.name}" for a in node.names] if module == "sspo_cli" else [module]
            for module in modules:
                package, _, rest = module.partition(".")
                room = rest.partition(".")[0]
                if (
                    package == "sspo_cli"
                    and room not in ("", "__version__", room_of(file))
                    and LEVEL[room] >= LEVEL[room_of(file)]
                ):
                    wrong.append(f"{file.relative_to(PACKAGE)} imports {module}")
    assert not wrong


def test_help_and_rewards_need_no_torch():
    for code in ("import sspo_cli.cli", "import sspo_cli.rewards, sspo_cli.tasks"):
        loaded = f"{code}; import sys; sys.exit('torch' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", loaded], check=False).returncode == 0, code
