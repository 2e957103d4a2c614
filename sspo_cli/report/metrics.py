"""The metrics of all runs in one file, for curves that the report does not draw."""

from io import BytesIO

import pandas as pd

from sspo_cli.report.collect import Collection


def metrics_parquet(collection: Collection) -> bytes:
    """Encode a row for each run and optimizer step: columns that identify the run, then every metric in float32."""
    parts = [
        run.metrics.astype("float32")
        .reset_index()
        .assign(
            setting=group.setting,
            method=group.method,
            gate=group.gate,
            configuration=group.configuration,
            seed=run.seed,
            run=run.path.name,
        )
        for group in collection.groups
        for run in group.runs
        if len(run.metrics)
    ]
    frame = pd.concat(parts, ignore_index=True)
    labels = ["setting", "method", "gate", "configuration", "seed", "run"]
    file = BytesIO()
    frame[[*labels, *frame.columns.difference(labels, sort=False)]].to_parquet(file, index=False, compression="zstd")
    return file.getvalue()
