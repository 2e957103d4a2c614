"""The files of a split in a data folder, as declared by its README.md or by the names of files and folders."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from sspo_cli.errors import UserError, border
from sspo_cli.tasks.files import READERS, type_of

# Names that the files of a split may have; the first is the name of the split.
SPLITS = {
    "train": ("train", "training"),
    "test": ("test", "testing", "eval", "evaluation"),
    "validation": ("validation", "valid", "val", "dev"),
}
ABOUT_DATA = ("dataset_dict.json", "dataset_info.json", "dataset_infos.json", "state.json")  # files without rows


def files_of_split(
    folder: Path, split: str, config: str | None, known_configs: Sequence[str], splits: Mapping[str, str]
) -> list[Path]:
    """Return the files of a split, in order.

    config         the configuration that the user chose, or None
    known_configs  configurations of the published data set; if `config` is None, all that exist in the folder are read
    splits         sspo's name of a split -> its name in the published data set

    If no file of the folder is named after a split, all files are returned. Raises UserError if the folder has no data files,
    if it does not have the split or the configuration, or if it has several configurations and none was chosen.
    """
    declared = _declared_configs(folder)
    configs = declared or _folders_as_configs(folder)
    if config is not None:
        if config not in configs:
            known = f"it has {', '.join(configs)}" if configs else "it has none"
            raise UserError(f"data folder {folder} has no configuration {config}; {known}")
        chosen = [config]
    else:
        chosen = [name for name in known_configs if name in configs] or list(configs if len(configs) == 1 else ())
        if configs and not chosen:
            raise UserError(f"data folder {folder} has the configurations {', '.join(configs)}; choose one as config=…")
    if declared:
        by_split = [_declared_files(folder, name) for name in chosen]
    else:
        by_split = [_files_by_split(folder / name, split) for name in chosen or [""]]
    return [file for files in by_split for file in files[choose_split(folder, split, files, splits)]]


def choose_split(folder: Path, split: str, available: Mapping[str, object], splits: Mapping[str, str]) -> str:
    """Return the key of `available` for a split: "" if none of the folder's files is named after a split.

    available  the folder's splits, by their names in the folder
    splits     sspo's name of a split -> its name in the published data set

    Raises UserError if the folder does not have the split.
    """
    is_standard = any(split in names for names in SPLITS.values())
    if list(available) == [""] and is_standard:
        return ""
    for name in (split, _standard(split), splits.get(split, split)):
        if name in available:
            return name
    has = f"it has {', '.join(available)}" if any(available) else "none of its files is named after it"
    raise UserError(f"data folder {folder} has no split {split}; {has}; choose another as split=…")


def _declared_configs(folder: Path) -> list[str]:
    """Return the configurations that the folder's README.md declares in the hub's format, or an empty list."""
    card = folder / "README.md"
    if not card.is_file():
        return []
    from huggingface_hub import metadata_load

    with border(f"the header of {card} cannot be read; correct or remove it"):
        configs = (metadata_load(card) or {}).get("configs") or []
        return [str(config["config_name"]) for config in configs if config.keys() & {"data_files", "data_dir"}]


def _declared_files(folder: Path, config: str) -> dict[str, list[Path]]:
    import datasets

    with border(f"configuration {config} of data folder {folder} cannot be read"):
        files = datasets.load_dataset_builder(str(folder), config).config.data_files
        return {split: [Path(file) for file in files[split]] for split in files}


def _folders_as_configs(folder: Path) -> list[str]:
    """Return the sub-folders with data, such as `main` and `socratic`, if the folder itself has none."""
    if _data_files(folder) or _below(folder):
        return []
    inside = [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith((".", "_"))]
    return [path.name for path in inside if _data_files(path) or _below(path)]


def _files_by_split(folder: Path, split: str) -> dict[str, list[Path]]:
    """Group the data files of a folder by the split in their own or their folder's name.

    If some files are named after splits, the other files are left out. If no file is named after a split, all files are grouped
    under "".
    """
    for files in (_data_files(folder), _below(folder)):
        by_split: dict[str, list[Path]] = {}
        for file in files:
            parts = (file.name, *reversed(file.relative_to(folder).parts[:-1]))
            names = next((names for part in parts if (names := _splits_named(part, split))), [])
            if len(names) > 1:
                raise UserError(
                    f"data file {file} is named after two splits, {' and '.join(names)}; give the file itself as path=…"
                )
            if names:
                by_split.setdefault(names[0], []).append(file)
        if by_split:
            return {name: by_split[name] for name in (*SPLITS, split) if name in by_split}
    if not (files := _data_files(folder) or _below(folder)):
        raise UserError(f"data folder {folder} holds no {', '.join(READERS)} files")
    return {"": files}


def _data_files(folder: Path) -> list[Path]:
    """Return the data files directly in a folder, sorted by name."""
    return [file for file in sorted(folder.glob("*")) if _has_rows(file)]


def _below(folder: Path) -> list[Path]:
    """Return the data files at any depth below the folder `data` and below folders named after splits."""
    names = ("data", *(name for names in SPLITS.values() for name in names))
    places = [path for path in sorted(folder.iterdir()) if path.is_dir() and path.name.lower() in names]
    return [file for place in places for file in sorted(place.rglob("*")) if _has_rows(file)]


def _has_rows(file: Path) -> bool:
    hidden = file.name.startswith((".", "_")) or file.name in ABOUT_DATA
    return not hidden and type_of(file) is not None and not file.is_dir()


def _splits_named(name: str, split: str) -> list[str]:
    """Return the splits that are named by a word of the file name, as in `math.train.jsonl` or `train-00000-of-00002.parquet`."""
    if _standard(split) not in SPLITS:
        return [split] if re.search(rf"(?<![A-Za-z\d]){re.escape(split)}(?![A-Za-z\d])", name) else []
    words = {word.removesuffix("set").removesuffix("data") for word in re.split(r"[^a-z]+", name.lower())}
    return [standard for standard, names in SPLITS.items() if words.intersection(names)]


def _standard(split: str) -> str:
    return next((name for name, names in SPLITS.items() if split in names), split)
