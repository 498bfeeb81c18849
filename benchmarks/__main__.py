"""`python -m benchmarks` runs every measurement, `python -m benchmarks NAME ...` some; then the
tables of the docs are drawn anew.

`python -m benchmarks tables` only draws them.
"""

import sys
from importlib import import_module

NAMES = (
    "capture_speed",
    "capture_memory",
    "shared_work",
    "scale",
    "transfer_cost",
    "training_cost",
    "four_bits",
    "split_memory",
    "real_sampling",
    "store_speed",
    "store_resume",
    "store_damage",
    "executors",
    "gpu",
    "full_study",
    "released_studies",
    "replication",
    "sampled_studies",
    "real_spread",
    "real_overlap",
    "real_directions",
    "real_sampled",
    "real_forecasts",
    "real_screening",
    "real_guard",
    "real_over_seeds",
    "real_layers_positions",
    "real_studies",
    "real_demo",
    "study_plan",
    "served_models",
    "served_adapters",
    "bombs",
    "two_writers",
    "kills",
    "sizes",
    "lasting",
    "layers_positions",
    "demo",
    "organism",
    "adapter_lens",
    "adapter_kinds",
    "organism_worlds",
    "direction_transfer",
    "ablation_damage",
    "planted_directions",
    "organism_directions",
    "geometry_accuracy",
    "randomised_svd",
    "elbow",
    "null_calibration",
    "overlap_calibration",
    "null_cost",
    "overlap_worlds",
    "overlap_grid_speed",
    "detection_curve",
    "interval_coverage",
    "verdict_intervals",
    "seeds_beside_nulls",
    "fuzzed_files",
    "sampling_speed",
    "intervention_programs",
    "interleaved_programs",
    "intervention_speed",
    "forecast_grid_speed",
    "forecast_false_discoveries",
    "forecast_confounds",
    "unrelated_forecasts",
    "endpoint_judging",
    "em_rate_coverage",
    "prediction_powered",
    "surrogate_judge",
    "triggers",
    "explain",
    "added_rows",
    "real_added_rows",
    "schedule_sweep",
    "kl_frontier",
    "general_vs_narrow",
    "organism_finetunes",
    "organism_forecasts",
    "architectures",
    "screening_backtest",
    "guard",
    "rank1_dynamics",
    "defences",
    "training_resume",
    "report_cost",
    "wheel",
    "site_search",
    "ten_tasks",
)


def main() -> None:
    asked = sys.argv[1:] or list(NAMES)
    unknown = [name for name in asked if name not in (*NAMES, "tables")]
    if unknown:
        raise SystemExit(
            f"unknown measurement {unknown[0]!r}; there are: {', '.join(NAMES)}, tables"
        )
    for name in asked:
        if name != "tables":
            import_module(f"benchmarks.{name}").main()
    import_module("benchmarks.tables").main()


main()
