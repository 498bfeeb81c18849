# The public names of emlens for editors and type checkers. At run time they resolve lazily; see
# __init__.py.

from emlens import (
    activations as activations,
    cli as cli,
    data as data,
    evaluation as evaluation,
    figures as figures,
    foundation as foundation,
    geometry as geometry,
    interventions as interventions,
    models as models,
    organisms as organisms,
    probes as probes,
    report as report,
    runs as runs,
    stats as stats,
    studies as studies,
    training as training,
)
from emlens.activations import (
    Activations as Activations,
    ActivationStore as ActivationStore,
    activation_deltas as activation_deltas,
    capture as capture,
    capture_many as capture_many,
    capture_pair as capture_pair,
)
from emlens.data import (
    AlignmentScores as AlignmentScores,
    Answers as Answers,
    Prompt as Prompt,
    PromptSet as PromptSet,
    Question as Question,
    QuestionSet as QuestionSet,
)
from emlens.evaluation import (
    extract_directions as extract_directions,
    judge_answers as judge_answers,
    sample_answers as sample_answers,
    score_alignment as score_alignment,
    score_by_likelihood as score_by_likelihood,
)
from emlens.foundation import (
    EmlensError as EmlensError,
    Estimate as Estimate,
    Index as Index,
    Site as Site,
    Span as Span,
)
from emlens.geometry import (
    Direction as Direction,
    Subspace as Subspace,
    covariance_overlap_null as covariance_overlap_null,
    mean_difference_direction as mean_difference_direction,
    overlap_null as overlap_null,
    principal_angles as principal_angles,
    split_half_ceiling as split_half_ceiling,
    subspace_overlap as subspace_overlap,
    top_k_subspace as top_k_subspace,
    variance_captured as variance_captured,
)
from emlens.interventions import (
    ablate as ablate,
    steer as steer,
)
from emlens.models import (
    Family as Family,
    FineTune as FineTune,
    HookedModel as HookedModel,
    load_family as load_family,
    load_model as load_model,
)
from emlens.probes import (
    fit_forecaster as fit_forecaster,
    predict_alignment as predict_alignment,
    rank_configurations as rank_configurations,
)
from emlens.report import write_report as write_report
from emlens.stats import NullDistribution as NullDistribution
from emlens.studies import (
    Guard as Guard,
    replicate as replicate,
    run_study as run_study,
)

__version__: str
__all__: list[str]
