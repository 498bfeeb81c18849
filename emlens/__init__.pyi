# The public names of emlens. This list is the only one: lazy_loader reads it at run time.

from . import (
    activations as activations,
    controls as controls,
    data as data,
    directions as directions,
    evaluation as evaluation,
    figures as figures,
    foundation as foundation,
    geometry as geometry,
    interventions as interventions,
    judging as judging,
    models as models,
    organisms as organisms,
    probes as probes,
    real as real,
    replication as replication,
    report as report,
    results as results,
    runs as runs,
    screening as screening,
    stats as stats,
    studies as studies,
    training as training,
)
from .activations import (
    Activations as Activations,
    ActivationStore as ActivationStore,
    CaptureSpec as CaptureSpec,
    activation_deltas as activation_deltas,
    capture as capture,
    capture_many as capture_many,
    capture_pair as capture_pair,
)
from .data import (
    AlignmentScores as AlignmentScores,
    Answers as Answers,
    PromptSet as PromptSet,
    QuestionSet as QuestionSet,
)
from .directions import (
    direction_from_texts as direction_from_texts,
    extract_directions as extract_directions,
    token_view as token_view,
)
from .foundation import (
    EmlensError as EmlensError,
    Site as Site,
)
from .geometry import (
    Direction as Direction,
    covariance_overlap_null as covariance_overlap_null,
    mean_difference_direction as mean_difference_direction,
    principal_angles as principal_angles,
    split_half_ceiling as split_half_ceiling,
    subspace_overlap as subspace_overlap,
    top_k_subspace as top_k_subspace,
)
from .interventions import (
    ablate as ablate,
    steer as steer,
)
from .judging import (
    judge_answers as judge_answers,
    sample_answers as sample_answers,
    score_by_likelihood as score_by_likelihood,
)
from .models import (
    FineTune as FineTune,
    HookedModel as HookedModel,
    load_family as load_family,
    load_model as load_model,
)
from .probes import (
    cross_validate_forecast as cross_validate_forecast,
    fit_forecaster as fit_forecaster,
)
from .report import write_report as write_report
from .studies import (
    Study as Study,
    register_study as register_study,
    run_study as run_study,
)

__version__: str
__all__: list[str]
