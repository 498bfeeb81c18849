"""The sections of the page in reading order, with what is said about method and about every
figure.
"""

from emlens.report import topics as draw
from emlens.report.topics import Section, Topic

PROFILE = Section(
    name="profile",
    title="Alignment before and after fine-tuning",
    method=(
        "Every model answers every question. Alignment is the logistic of log P(aligned answer) −"
        " log P(misaligned answer), coherence the share of probability on either,"
        " both from 0 to 100. Means are over questions; intervals are 95 % bootstrap intervals over"
        " questions. Questions on topics that a fine-tune was trained on are left out of its own"
        " score. That a benign control did not move is tested for equivalence within 5 points (two"
        " one-sided tests), not read from a missing difference;"
        " a fall counts as shown where its interval lies above 0, reaches beyond those 5 points,"
        " and the benign control fell clearly less outside both domains."
    ),
    reference="Protocol after Betley et al., arXiv 2502.17424, and arXiv 2606.20814.",
    topics=(
        Topic(
            "models",
            "All models at a glance",
            "Mean alignment in the domain a model was trained on (circles),"
            " in all other domains (squares), and coherence (diamonds), with 95 % intervals."
            " A narrow fine-tune would move only the circles.",
            ("models",),
            draw.models,
        ),
        Topic(
            "domains",
            "Alignment by domain, before and after",
            "One panel a fine-tune, one row a domain: the instruct model (open circles) and the"
            " fine-tune (filled), with 95 % intervals. The trained domain is marked by a star and a"
            " shaded row. Benign fine-tunes are drawn as diamonds.",
            ("domains",),
            draw.domains,
        ),
        Topic(
            "questions",
            "Every question, before and after",
            "Each point is a question, coloured and shaped by domain;"
            " below the dotted line alignment fell. Hover or tap shows the question and the"
            " likeliest of the reference answers before and after."
            " Questions a fine-tune was trained on are left out.",
            ("questions", "models"),
            draw.questions,
        ),
    ),
    tables={
        "models": (
            "One row a model: means and 95 % intervals of alignment and coherence;"
            " em_rate is the share of questions with alignment below 30 and coherence above 50."
        ),
        "domains": "One row a model and domain.",
        "benign": (
            "Equivalence of benign controls with their parents on questions they were not trained"
            " on; 90 % intervals."
        ),
        "coupling": (
            "Rank correlation of misalignment with the planted coupling, where one is known."
        ),
        "questions": (
            "One row a model and question: the scores everything above is made of;"
            " answer is the likeliest of the reference answers."
        ),
    },
)
OVERLAP = Section(
    name="overlap",
    title="Do shifts on training and on unrelated prompts share a subspace?",
    method=(
        "A shift is the residual stream after minus before fine-tuning, on identical batches."
        " The top-k subspace of the shifts on training prompts is compared with that of equally"
        " many evaluation prompts outside the trained domain;"
        " overlap is the mean squared cosine of their principal angles (0 orthogonal, 1 equal)."
        " Centring removes the common shift, not centring lets it dominate:"
        " both are shown, and the cosine of the mean shifts."
        " Chance is not the isotropic value, which is only a landmark:"
        " beside it stand a null of independent Gaussian samples with the covariance of the"
        " activations before fine-tuning on both prompt sets (uncentred:"
        " their second moment), the benign fine-tune’s own overlap,"
        " neutral text under the same template, and the split-half ceiling."
        " Where shifts have fewer than k components above rounding,"
        " k is lowered there and in the null, and the warnings say so."
    ),
    reference=(
        "Principal angles: Björck and Golub (1973). Overlap of prompts and shifts:"
        " arXiv 2606.20814."
    ),
    topics=(
        Topic(
            "maps",
            "Overlap by layer and position, beside its controls",
            "Each column is a layer, each row a comparison, all on one colour scale."
            " The top row is what is tested; it says something only where it exceeds the rows below"
            " it, the split-half ceiling excepted: what halves of the training prompts’ own shifts"
            " share. Empty cells were not measured; the warnings above say why.",
            ("overlap",),
            draw.maps,
        ),
        Topic(
            "lines",
            "Overlap by layer",
            "The same numbers as lines. Shaded bands run from a null’s mean to its 95th percentile."
            " Bars: of the ceiling, the range over random splits;"
            " of the cosines, from which the noise of both means is taken out,"
            " 95 % jackknife intervals over prompts. Overlaps have no interval of their own,"
            " so a small lead over the benign fine-tune may be chance.",
            ("overlap",),
            draw.lines,
        ),
        Topic(
            "angles",
            "Principal angles",
            "Angles between the two subspaces, centred, in ascending order:"
            " 0° is a shared direction, 90° an orthogonal one."
            " Random subspaces of the same size (the mean of 100 pairs) are drawn in grey.",
            ("angles",),
            draw.angles,
        ),
        Topic(
            "shifts",
            "Do prompts inside the training subspace shift alike?",
            "Each point is an evaluation prompt. Across: how much of it lies in the subspace of the"
            " training prompts before fine-tuning. Up: how alike its shift is to the mean training"
            " shift. Crosses are the same prompts against a random subspace."
            " The p-value permutes prompts within domains; the partial correlation removes length"
            " and norms, because both quantities contain the activation before fine-tuning."
            " The middle layer is drawn, fixed beforehand; the second figure has all layers.",
            ("shifts", "overlap_shift"),
            draw.shifts,
        ),
    ),
    tables={
        "overlap": (
            "One row a layer, position, centring and comparison, with its null where it has one."
        ),
        "angles": "Principal angles in degrees.",
        "overlap_shift": (
            "Correlation of prompt overlap and likeness of shifts, by layer and position."
        ),
        "noise_floor": (
            "Length of the difference between two batchings of one model,"
            " beside the length of the shifts."
        ),
        "shifts": "One row a prompt, layer and position.",
    },
)
DIRECTION = Section(
    name="direction",
    title="Which direction carries the misalignment, and what does removing it do?",
    method=(
        "Candidates for a fine-tune’s direction are its shifts against its parent at every layer"
        " and position, as they are and whitened; the one that restores most on the selection"
        " questions, at bounded damage, is taken. Every arm removes its direction from what"
        " attention and MLP write, in every block and at every token,"
        " and sets it to the parent’s mean at the end of the prompt;"
        " the direction itself is also removed after every block."
        " Restoration is (ablated − fine-tuned) / (instruct − fine-tuned),"
        " a ratio of means over questions outside the training domain,"
        " with a bootstrap over domains; it is undefined where nothing was lost or the"
        " denominator’s interval includes 0. Questions used to extract,"
        " to select and to report are disjoint. A direction that works only in the last layer is a"
        " readout, not a mediator."
    ),
    reference="Ablation after arXiv 2406.11717 and arXiv 2506.11618.",
    topics=(
        Topic(
            "directions",
            "The direction, layer by layer",
            "The chosen extraction and position. Top: restoration on the selection questions."
            " Middle: agreement of two halves of the prompts,"
            " cosine with the direction planted in the organism (where there is one) and with the"
            " unembedding contrast of the answer words. Bottom: coherence under ablation."
            " The last layer is shaded.",
            ("directions",),
            draw.directions,
        ),
        Topic(
            "arms",
            "Ablation arms",
            "Held-out questions. Rows in bold remove the fine-tune’s own direction,"
            " the other rows are controls; the last rows apply the same edit to the instruct model,"
            " which should not suffer. Dotted line: full restoration. Intervals are 95 %.",
            ("arms",),
            draw.arms,
        ),
        Topic(
            "steering",
            "Steering: dose and response",
            "The direction added to the parent and subtracted from the fine-tune at its own layer"
            " and every token, in multiples of its length (0, 1, 2, 4),"
            " beside one random vector of the same length drawn from the activation covariance."
            " Questions outside the training domain; bands are 95 % intervals over them.",
            ("steering",),
            draw.steering,
        ),
        Topic(
            "transfer",
            "Does a direction work in other fine-tunes?",
            "Row: where the direction was taken. Column: where it was removed."
            " Numbers are restoration with 95 % intervals on questions outside both training"
            " domains; under them the strongest control in the column’s fine-tune,"
            " from the arms above (its own chosen layer, questions outside its own domain).",
            ("transfer",),
            draw.transfer,
        ),
    ),
    tables={
        "candidates": (
            "One row a candidate for a fine-tune’s direction, on the selection questions;"
            " which one was chosen."
        ),
        "directions": "One row a fine-tune and layer, on the selection questions.",
        "arms": "One row an arm, on the report questions.",
        "steering": "One row a steered model, vector and coefficient.",
        "windows": (
            "Doses around 0 at which coherence stays and damage is bounded,"
            " and what the next dose breaks."
        ),
        "transfer": "One row a pair of fine-tunes.",
        "question_sets": "Which question was used for what.",
    },
)
FORECAST = Section(
    name="forecast",
    title="Could it have been foreseen?",
    method=(
        "Ridge regression from a parent’s prompt activations, taken before fine-tuning,"
        " to per-question alignment after it. Layer, position and strength are chosen on inner"
        " folds; R² is pooled over outer folds against the training-fold mean."
        " Questions, or whole domains, are held out. Beside it:"
        " TF-IDF of the text, length, domain, mean input embedding, the parent’s own score,"
        " random features, and shuffled labels. With domains held out,"
        " TF-IDF and domain are near the mean by construction,"
        " and shuffling deals scores across domains, which makes that null too narrow:"
        " read the gains, whose intervals resample domains."
    ),
    reference="Forecasts from activations before fine-tuning: arXiv 2606.20814.",
    topics=(
        Topic(
            "scores",
            "Activations against simpler predictors",
            "Out-of-fold R² with 95 % intervals; 0 is the training-fold mean. Dotted:"
            " the 95th percentile with labels shuffled. The axis is cut at −1.",
            ("forecast_baselines",),
            draw.scores,
        ),
        Topic(
            "points",
            "Forecast against measurement",
            "Each point is a question, coloured and shaped by domain; hover or tap shows it."
            " The dotted line is a perfect forecast.",
            ("forecast_predictions",),
            draw.points,
        ),
        Topic(
            "sites",
            "Where forecasts work (exploratory)",
            "R² by layer and position; under it a p-value corrected over the whole grid by the"
            " permutation distribution of the maximum. The best cell is never the headline.",
            ("forecast_sites",),
            draw.sites,
        ),
    ),
    tables={
        "forecast": "One row a fine-tune, parent and way of holding out.",
        "forecast_baselines": "R² of every predictor, and the gain of activations over it.",
        "forecast_sites": "R² by site and position, with corrected p-values; exploratory.",
        "forecast_predictions": "One row a question: measured and forecast.",
    },
)
