"""The configuration of a run: its options, read from YAML files and dotted overrides."""

from sspo_cli.config.base import Options
from sspo_cli.config.data import (
    ENVIRONMENTS,
    TASK_NAMES,
    BenchmarkOptions,
    ChatOptions,
    ColumnOptions,
    RewardOptions,
    TaskName,
    TaskOptions,
    task_from_text,
    with_episodes,
)
from sspo_cli.config.explain import explain
from sspo_cli.config.files import (
    SWEEP_KEYS,
    Given,
    differences,
    fixed_differences,
    flatten,
    load_config,
    may_change,
    merge_config,
    merge_layers,
    nest,
    read_yaml,
    refuse_unread,
    to_yaml,
    validate,
)
from sspo_cli.config.hints import option_named
from sspo_cli.config.ignored import find_ignored, is_default, refuse_ignored
from sspo_cli.config.learning import (
    DEFAULT_METHOD,
    ColdStartOptions,
    LearningOptions,
    ObjectiveOptions,
    OptimizerOptions,
)
from sspo_cli.config.model import LoraOptions, ModelOptions, TinyModelOptions
from sspo_cli.config.named import named_model_defaults
from sspo_cli.config.options import (
    VALIDATION,
    CheckpointOptions,
    EvaluationOptions,
    ForkOptions,
    RunOptions,
    WandbOptions,
)
from sspo_cli.config.sampling import EpisodeOptions, RolloutOptions, VllmOptions

__all__ = [
    "DEFAULT_METHOD",
    "ENVIRONMENTS",
    "SWEEP_KEYS",
    "TASK_NAMES",
    "VALIDATION",
    "BenchmarkOptions",
    "ChatOptions",
    "CheckpointOptions",
    "ColdStartOptions",
    "ColumnOptions",
    "EpisodeOptions",
    "EvaluationOptions",
    "ForkOptions",
    "Given",
    "LearningOptions",
    "LoraOptions",
    "ModelOptions",
    "ObjectiveOptions",
    "OptimizerOptions",
    "Options",
    "RewardOptions",
    "RolloutOptions",
    "RunOptions",
    "TaskName",
    "TaskOptions",
    "TinyModelOptions",
    "VllmOptions",
    "WandbOptions",
    "differences",
    "explain",
    "find_ignored",
    "fixed_differences",
    "flatten",
    "is_default",
    "load_config",
    "may_change",
    "merge_config",
    "merge_layers",
    "named_model_defaults",
    "nest",
    "option_named",
    "read_yaml",
    "refuse_ignored",
    "refuse_unread",
    "task_from_text",
    "to_yaml",
    "validate",
    "with_episodes",
]
