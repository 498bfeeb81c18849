"""What the report shows of the study `delta_overlap`."""

from emlens.results.columns import Measure
from emlens.results.sections import Plot, Section
from emlens.results.tables import Table
from emlens.results.vocabulary import BESIDE, PLACE, VALUE, measures, word

SECTION = Section(
    method=(
        "A shift is the residual stream after minus before fine-tuning, on identical batches."
        " The top-k subspace of the shifts on training prompts is compared with that of equally"
        " many evaluation prompts outside the trained domain;"
        " overlap is the mean squared cosine of their principal angles (0 orthogonal, 1 equal)."
        " Centring removes the common shift, not centring lets it dominate:"
        " both are shown, and the cosine of the mean shifts."
        " Chance is not the isotropic value, which is only a landmark:"
        " it is shown with a null of independent Gaussian samples with the covariance of the"
        " activations before fine-tuning on both prompt sets (uncentred: their second moment),"
        " the benign fine-tune’s own overlap, neutral text under the same template,"
        " and the split-half ceiling."
        " A k that is a share of variance or the elbow of the spectrum (Onatski 2010) is chosen at"
        " each place on the training shifts, and nulls and controls there have the same k."
        " Where shifts have fewer than k components above rounding,"
        " k is lowered there and in the null, and the warnings say so."
    ),
    reference=(
        "Principal angles: Björck and Golub (1973)."
        " Overlap of prompts and shifts: arXiv 2606.20814."
    ),
    plots=(
        Plot(
            kind="overlap_heatmaps",
            table="overlap",
            title="Overlap by layer and position, beside its controls",
            caption=(
                "Each column is a layer, each row a comparison, all on one colour scale."
                " The top row is what is tested; it says something only where it exceeds the rows"
                " below it, the split-half ceiling excepted: what halves of the training prompts’"
                " own shifts share. Empty cells were not measured; the warnings above say why."
            ),
            name="maps",
        ),
        Plot(
            kind="overlap_by_layer",
            table="overlap",
            title="Overlap by layer",
            caption=(
                "The same numbers as lines."
                " Shaded bands run from a null’s mean to its 95th percentile."
                " Bars: of the ceiling, the range over random splits;"
                " of the cosines, from which the noise of both means is taken out,"
                " 95 % jackknife intervals over prompts."
                " Overlaps have no interval of their own,"
                " so a small lead over the benign fine-tune may be chance."
            ),
            name="lines",
        ),
        Plot(
            kind="angle_spectra",
            table="angles",
            title="Principal angles",
            caption=(
                "Angles between the two subspaces, centred, in ascending order:"
                " 0° is a shared direction, 90° an orthogonal one."
                " Random subspaces of the same size (the mean of 100 pairs) are drawn in grey."
            ),
            name="angles",
        ),
        Plot(
            kind="overlap_against_shift",
            table="shifts",
            tables=("overlap_shift",),
            title="Do prompts inside the training subspace shift alike?",
            caption=(
                "Each point is an evaluation prompt. Across: how much of it lies in the subspace of"
                " the training prompts before fine-tuning."
                " Up: how alike its shift is to the mean training shift."
                " Crosses are the same prompts against a random subspace."
                " The p-value permutes prompts within domains;"
                " the partial correlation removes length and norms,"
                " because both quantities contain the activation before fine-tuning."
                " The middle layer is drawn, fixed beforehand; the second figure has all layers."
            ),
            name="shifts",
        ),
        Plot(
            kind="line",
            table="overlap_benign",
            x="layer",
            y="lead",
            title="Lead of the overlap over the benign fine-tune's",
            caption="Bands: 95 % jackknife over blocks of prompts.",
            colour="model",
            facet="position",
            hover=("overlap", "benign", "null_mean"),
        ),
        Plot(
            kind="heatmap",
            table="overlap_groups",
            x="site",
            y="overlap",
            title="Overlap with each group of questions",
            caption="Equal numbers; own domain is a positive control.",
            colour="group",
            facet="model",
            hover=("null_mean", "p_holm", "n"),
        ),
    ),
    tables={
        "overlap_benign": Table(
            "One row per fine-tune and place: overlap minus the benign control's, with interval,"
            " and (first position) the null of benign shifts.",
            [PLACE, "k overlap benign", *measures("lead"), BESIDE, "n"],
        ),
        "overlap_groups": Table(
            "One row per fine-tune, place and group of questions:"
            " overlap at the group's number of prompts, null, cosine of mean shifts.",
            [PLACE, "group k overlap", BESIDE, "p_holm", *measures("cosine"), "n"],
        ),
        "overlap_by_k": Table(
            "One row per fine-tune, place and k.",
            [PLACE, "k overlap benign", BESIDE, "n"],
        ),
        "overlap": Table(
            "One row per fine-tune, place, centring and comparison,"
            " with its null where it has one.",
            [
                PLACE,
                "k center measure comparison",
                VALUE,
                "null_kind null_mean null_sd null_q95 p n",
            ],
        ),
        "angles": Table(
            "One row per fine-tune, place, comparison and principal angle.",
            [PLACE, "comparison index degrees"],
        ),
        "overlap_shift": Table(
            "One row per fine-tune and place:"
            " correlation of prompt overlap and likeness of shifts.",
            [
                PLACE,
                Measure(word("pearson"), "low", "high", "null_mean"),
                BESIDE,
                *measures("partial"),
                "mean_overlap mean_random_overlap mantel mantel_p n",
            ],
        ),
        "noise_floor": Table(
            "One row per site and position: length of the difference between two batchings of one"
            " model, beside the length of the shifts.",
            ["site position noise_norm delta_norm ratio n"],
        ),
        "shifts": Table(
            "One row per fine-tune, place and prompt.",
            [
                PLACE,
                "id group text prompt_overlap random_overlap cosine_to_mean_train",
                "delta_norm",
            ],
        ),
    },
)
