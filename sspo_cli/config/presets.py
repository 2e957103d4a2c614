"""Presets: the config files that come with the program, in the project's folder `configs`."""

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sspo_cli.config.parsing import read_text
from sspo_cli.errors import LONGEST_PATH, UserError, did_you_mean

# A link to the project's folder in a clone, a copy of its files in a wheel.
FOLDER = Path(__file__).parents[1] / "configs"
SWEEPS = "sweeps/"
SUFFIX = ".yaml"
FIRST_SENTENCE = re.compile(r".+?\.(?=\s|$)|.+")


@dataclass(frozen=True, slots=True)
class Preset:
    """A config file that comes with the program.

    name  name for `-c`, such as `table1` or `sweeps/table1`
    """

    name: str
    file: Path

    @property
    def text(self) -> str:
        """Return the text of the file."""
        return read_text(self.file, f"preset {self.name}")

    @property
    def comments(self) -> tuple[str, str]:
        """Return the hardware from the first comment line, and the first sentence of the following comment."""
        lines = itertools.takewhile(lambda line: line.startswith("#"), self.text.splitlines())
        hardware, *content = [line.removeprefix("#").strip() for line in lines] or [""]
        sentence = FIRST_SENTENCE.match(" ".join(content))
        return hardware.removeprefix("Hardware:").strip(), sentence[0] if sentence else ""


def presets() -> Iterator[Preset]:
    """Yield every preset, single runs before sweeps."""
    for prefix in ("", SWEEPS):
        for file in sorted((FOLDER / prefix).glob(f"*{SUFFIX}")):
            yield Preset(prefix + file.stem, file)


def find_config(name: Path, prefix: str = "") -> Path:
    """Return the file for a value of `-c`: an existing path, otherwise the preset of that name.

    prefix  folder of the command's presets; `sspo sweep -c table1` finds `sweeps/table1`, because its prefix is `sweeps/`

    Raises UserError if there is neither.
    """
    if len(str(name)) > LONGEST_PATH or "\0" in str(name) or name.exists():
        return name  # errors are reported when it is read
    files = {preset.name: preset.file for preset in presets()}
    wanted = str(name).removesuffix(SUFFIX)
    if file := files.get(prefix + wanted) or files.get(wanted):
        return file
    if name.suffix or len(name.parts) > 1:
        raise UserError(f"config file {name} cannot be read: No such file or directory; {_own(files, prefix)}")
    raise UserError(f"there is no config file and no preset {name}{did_you_mean(wanted, _names(files, prefix))}")


def find_preset(name: str) -> Preset:
    """Find a preset by its name. Raises UserError if there is none."""
    known = {preset.name: preset for preset in presets()}
    if preset := known.get(name.removesuffix(SUFFIX)):
        return preset
    raise UserError(f"there is no preset {name or repr(name)}{did_you_mean(name, known)}")


def _names(files: dict[str, Path], prefix: str) -> list[str]:
    """Return the preset names that a command accepts for `-c`."""
    return [name.removeprefix(prefix) for name in files if name.startswith(prefix) and (prefix or "/" not in name)]


def _own(files: dict[str, Path], prefix: str) -> str:
    return f"the presets are {', '.join(_names(files, prefix))}"
