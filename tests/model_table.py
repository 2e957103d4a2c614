"""Try transformers' causal-LM types as small random models: `python -m tests.model_table [TYPE]...`

Without types, all of them. Right: sampler, log-probabilities and gradients are those of the model's literal computation.
"""

import sys
import time

from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from sspo_cli.config import ModelOptions
from sspo_cli.errors import UserError, first_line
from sspo_cli.model_check.structure import NotShrunk, check_small

REACH = 64  # tokens of the longest text


def outcome(kind: str) -> str:
    """Say whether a type of models is right, refused and why, or cannot be tried in small."""
    try:
        config = AutoConfig.for_model(kind)
        check_small(kind, config, ModelOptions(name=kind), REACH, learns=True, samples=True)
    except UserError as error:
        return f"refused: {error}"
    except NotShrunk as error:
        return f"not tried in small: {error}"
    except Exception as error:  # the config class itself
        return f"FAILED with {type(error).__name__}: {first_line(error)}"
    return "right"


if __name__ == "__main__":
    for kind in sys.argv[1:] or sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        start = time.perf_counter()
        result = outcome(kind)
        print(f"{kind:24} {time.perf_counter() - start:5.1f} s  {result}", flush=True)
