"""Robustness as earlier versions stored it: accuracies only."""

import json

from finetune_core.evaluation.single_run.corruptions import list_corruptions
from finetune_core.evaluation.single_run.robustness_files import load_robustness
from finetune_core.training.predictions import predictions_mtime


def write_accuracies(run, split="test", images=100):
    """Write the measured accuracies, or 25 %, in the earlier form."""
    known = load_robustness(run, split)
    even = [
        {
            "corruption": one.corruption,
            "severity": one.severity,
            "accuracy": 0.25,
            "low": 0.2,
            "high": 0.3,
        }
        for one in list_corruptions(split)
    ]
    rows = known.rows.to_dict(orient="records") if known else even
    stored = {
        "predictions": predictions_mtime(run.run_dir),
        "images": known.images if known else images,
        "rows": rows,
    }
    (run.run_dir / f"robustness-{split}.json").write_text(json.dumps(stored))
    (run.run_dir / f"robustness-{split}.parquet").unlink(missing_ok=True)
    return run
