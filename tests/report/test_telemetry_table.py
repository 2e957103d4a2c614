"""The table of speed and memory."""

from pathlib import Path

import pytest
from synthetic_runs import write_run

from sspo_cli.report.collect import collect
from sspo_cli.report.tables.telemetry import telemetry_table
from sspo_cli.tracking.files import read_jsonl, write_jsonl_atomic

ON_A_GPU = {"time/tokens_per_second": 500.0, "device/memory": 40.0, "device/flop_utilization": 0.25}


def of_rank(number: int, **values: float) -> dict[str, float]:
    return {f"{'device' if name == 'memory' else 'time'}/rank_{number}_{name}": value for name, value in values.items()}


def test_each_run_has_the_range_over_its_ranks(tmp_path: Path) -> None:
    """Run `b` first had three ranks and then two, so its steps on three ranks do not count."""
    measured = {
        "a": [  # resumed before its last step, for which nothing more was sampled
            ON_A_GPU,
            ON_A_GPU | {"time/tokens_per_second": 0.0, "device/memory": 42.0, "device/flop_utilization": 0.35},
        ],
        "b": [
            {
                "time/tokens_per_second": 900.0,
                **of_rank(0, learning=1.0, memory=90.0),
                **of_rank(1, learning=1.0),
                **of_rank(2, learning=1.0),
            },
            *(
                {
                    "time/tokens_per_second": 1000.0 + step,
                    **of_rank(0, learning=1.0, sync=2.0 * step, waiting=0.05, tokens_per_second=610.0, memory=71.0),
                    **of_rank(1, learning=1.0, sync=2.2 * step, waiting=0.2, tokens_per_second=640.0, memory=71.01),
                }
                for step in (1, 0)
            ),
        ],
        "c": [{"time/tokens_per_second": 300.0}],  # a single process on a CPU
    }
    for seed, (name, rows) in enumerate(measured.items()):
        path = write_run(tmp_path / name, f"seed={seed}", steps=len(rows), whole=True) / "metrics.jsonl"
        write_jsonl_atomic(path, [{**row, **more} for row, more in zip(read_jsonl(path), rows, strict=True)])
    table = telemetry_table(collect([tmp_path]))
    assert table is not None
    assert table.headings == [
        *("Run", "Ranks", "Tokens/s", "Sampled tokens/s of a rank", "Peak memory", "FLOPs utilization"),
        *("Sync", "Waiting"),
    ]
    assert [[cell.text for cell in line] for line in table.lines] == [
        ["`a`", "1", "500", "–", "42.0 GB", "30%", "–", "–"],
        ["`b`", "2", "1,000", "610 to 640", "71.0 GB", "–", "2.00 to 2.20 s", "10% to 40%"],
    ]
    of_b = table.frame[table.frame["run"] == str(tmp_path / "b")]
    assert list(of_b["rank"]) == [0, 1]
    assert list(of_b["memory"]) == pytest.approx([71.0, 71.01])


def test_runs_of_one_process_on_a_cpu_have_no_such_table(tmp_path: Path) -> None:
    write_run(tmp_path / "a", whole=True)
    write_run(tmp_path / "b", "seed=1", last=0, state="failed")
    assert telemetry_table(collect([tmp_path])) is None
