"""emlens: how narrow fine-tuning moves residual streams, and what that says about emergent
misalignment.

Public names resolve at first use, so `import emlens` loads neither torch nor any model library. The
static stub beside this file tells editors and type checkers the same names; a test keeps the two in
step.
"""

from importlib import import_module

__version__ = "0.1.0"

_PACKAGES = (
    "activations",
    "cli",
    "data",
    "evaluation",
    "figures",
    "foundation",
    "geometry",
    "interventions",
    "models",
    "organisms",
    "probes",
    "report",
    "runs",
    "stats",
    "studies",
    "training",
)

_HOME_OF = {
    "ActivationStore": "emlens.activations",
    "Activations": "emlens.activations",
    "AlignmentScores": "emlens.data",
    "Answers": "emlens.data",
    "Direction": "emlens.geometry",
    "EmlensError": "emlens.foundation",
    "Estimate": "emlens.foundation",
    "Family": "emlens.models",
    "FineTune": "emlens.models",
    "Guard": "emlens.studies",
    "HookedModel": "emlens.models",
    "Index": "emlens.foundation",
    "NullDistribution": "emlens.stats",
    "Prompt": "emlens.data",
    "PromptSet": "emlens.data",
    "Question": "emlens.data",
    "QuestionSet": "emlens.data",
    "Site": "emlens.foundation",
    "Span": "emlens.foundation",
    "Subspace": "emlens.geometry",
    "ablate": "emlens.interventions",
    "activation_deltas": "emlens.activations",
    "capture": "emlens.activations",
    "capture_many": "emlens.activations",
    "capture_pair": "emlens.activations",
    "covariance_overlap_null": "emlens.geometry",
    "extract_directions": "emlens.evaluation",
    "fit_forecaster": "emlens.probes",
    "judge_answers": "emlens.evaluation",
    "load_family": "emlens.models",
    "load_model": "emlens.models",
    "mean_difference_direction": "emlens.geometry",
    "overlap_null": "emlens.geometry",
    "predict_alignment": "emlens.probes",
    "principal_angles": "emlens.geometry",
    "rank_configurations": "emlens.probes",
    "replicate": "emlens.studies",
    "run_study": "emlens.studies",
    "sample_answers": "emlens.evaluation",
    "score_alignment": "emlens.evaluation",
    "score_by_likelihood": "emlens.evaluation",
    "split_half_ceiling": "emlens.geometry",
    "steer": "emlens.interventions",
    "subspace_overlap": "emlens.geometry",
    "top_k_subspace": "emlens.geometry",
    "variance_captured": "emlens.geometry",
    "write_report": "emlens.report",
}

__all__ = sorted([*_HOME_OF, *_PACKAGES, "__version__"])


def __getattr__(name: str) -> object:
    if name in _PACKAGES:
        return import_module(f"emlens.{name}")
    if name in _HOME_OF:
        value = getattr(import_module(_HOME_OF[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(
        f"module 'emlens' has no attribute {name!r}; dir(emlens) lists its public names"
    )


def __dir__() -> list[str]:
    return __all__
