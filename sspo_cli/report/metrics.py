"""Export of the metrics of all runs to one file, for plots that the report does not contain."""

from io import BytesIO

import pandas as pd

from sspo_cli.report.collect import Collection


def metrics_parquet(collection: Collection) -> bytes:
    """Return a Parquet file with a row for each run and step: columns that identify the run, then all metrics in float32."""
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
