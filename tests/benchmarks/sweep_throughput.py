"""Compare a sweep of one trial at a time with two at a time: `python -m tests.benchmarks.sweep_throughput`.

Each measurement is a whole `sspo sweep` of the embedded task, from its command to its end; the cold start is made before. Both
kinds alternate. The ratio is that of the medians of all repeats. Processor time is given next to wall time, because a busy
machine stretches wall time. The table is printed and written to `tests/benchmarks/results/`. The benchmark needs two cores that
nothing else uses.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from tests.benchmarks.against_trl import ROOT, spread, write

JOBS = (1, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", default=3, type=int)
    parser.add_argument("--trials", default=4, type=int)
    parser.add_argument("--steps", default=160, type=int, help="of a trial")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "sweep.yaml").write_text(
            json.dumps({"options": {"steps": given.steps}, "seeds": list(range(given.trials))})
        )
        sspo("train", "--runs-dir", folder / "before", "--run", "cold", "-s", "steps=1")
        times: dict[int, list[tuple[float, float]]] = {jobs: [] for jobs in JOBS}
        for repeat in range(given.repeats):
            for jobs in JOBS if repeat % 2 == 0 else JOBS[::-1]:  # a machine that gets slower favours neither
                runs = folder / f"{repeat}-{jobs}"
                shutil.copytree(folder / "before" / "cold-starts", runs / "sweep" / "cold-starts")
                times[jobs].append(sspo("sweep", "-c", folder / "sweep.yaml", "--jobs", jobs, "--runs-dir", runs))
    one, two = (median(wall for wall, _ in times[jobs]) for jobs in JOBS)
    name = f"{given.trials} trials of {given.steps} steps"
    row = {
        "sweep": name,
        **{f"--jobs {jobs}": spread(times[jobs], 0) for jobs in JOBS},
        **{f"--jobs {jobs}, processor": spread(times[jobs], 1) for jobs in JOBS},
        "throughput": one / two,
    }
    write("sweep-throughput", [row])


def sspo(*arguments: object) -> tuple[float, float]:
    """Run the command; return the wall time and the processor time of it and of all its children, in seconds."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, "-m", "sspo_cli", *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
