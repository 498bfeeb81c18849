"""What the report shows of the study `delta_overlap`."""

from emlens.results.columns import Measure
from emlens.results.sections import Plot, Section
from emlens.results.tables import Table
from emlens.results.vocabulary import BESIDE, PLACE, VALUE, measures, word

SECTION = Section(
    method=(
        "A shift is the residual stream after minus before fine-tuning, on identical batches;"
        " training prompts are compared with equally many prompts outside the trained domain."
        " Do shifts overlap? The variance-weighted overlap is the cosine of both covariances, the"
        " other number the cosine of both means without their noise; each is a mean over layers."
        " Random subspaces, samples of one population with the covariance of the activations"
        " before, random and gradient updates of the fine-tune’s length, the activations before,"
        " the benign fine-tune and the split-half ceiling are landmarks. They test nothing:"
        " training and evaluation prompts are two populations, and whatever was trained lies above"
        " a random update."
        " More than any training on these prompts gives? The null is training without the content:"
        " adapters by the fine-tune’s own recipe, prompts and steps, on careful answers that were"
        " permuted between questions. Two statistics are tested (Holm); the first principal angle"
        " and the mean squared cosine of the top-k subspaces are described."
        " A k that is a share of variance or the elbow of the spectrum (Onatski 2010) is chosen at"
        " each place on the training shifts, and landmarks there have the same k."
        " Is something specific to harm shared across domains? On prompts of a third domain the"
        " centred shifts of two harmful fine-tunes are compared prompt by prompt, beside pairs of"
        " such adapters and the benign pair."
        " Layers where nothing moved, or in one direction alone (an identity), are left out."
    ),
    reference=(
        "Principal angles: Björck and Golub (1973)."
        " Overlap of prompts and shifts: arXiv 2606.20814."
    ),
    plots=(
        Plot(
            kind="forest",
            table="overlap_test",
            x="model",
            y="value",
            title="More than any training on these prompts gives?",
            caption=(
                "Each statistic of a fine-tune beside the mean of its training null (dotted)."
                " Only p says whether it lies above the null’s spread."
            ),
            colour="position",
            facet="measure",
            null="null_mean",
            hover=("null_low", "null_q95", "p_holm", "split_half", "benign_value", "answered"),
            name="training-null",
        ),
        Plot(
            kind="points",
            table="overlap_landmarks",
            x="landmark",
            y="value",
            title="What else overlaps",
            caption=(
                "Landmarks, which test nothing. A random or a gradient update has the length of the"
                " fine-tune's shifts; where it raises neutral text by more than .5 nats it is not"
                " comparable."
            ),
            colour="model",
            facet="measure",
            hover=("position", "scale", "nats", "parent_nats", "comparable"),
            name="landmarks",
        ),
        Plot(
            kind="forest",
            table="overlap_domains",
            x="domain_pair",
            y="value",
            title="Is something specific to harm shared across domains?",
            caption=(
                "Centred cosine of two fine-tunes’ shifts on prompts of third domains; dotted: the"
                " mean of pairs of adapters on permuted careful answers."
            ),
            colour="kind",
            facet="position",
            null="null_mean",
            hover=("model", "second_model", "null_q95", "p", "means_cosine", "answered"),
            name="domains",
        ),
        Plot(
            kind="overlap_heatmaps",
            table="overlap",
            title="Overlap by layer and position, beside its controls",
            caption=(
                "Each column is a layer, each row a comparison, all on one colour scale."
                " The top row is the overlap of mean squared cosines, which is described and not"
                " tested; the rows below are landmarks. Empty cells were not measured; the warnings"
                " above say why."
            ),
            name="maps",
        ),
        Plot(
            kind="overlap_by_layer",
            table="overlap",
            tables=("overlap_layers",),
            title="Overlap by layer",
            caption=(
                "Overlap of the shifts on training and on evaluation prompts, by layer."
                " The blue band is the null: 5 to 95 % of the adapters that were trained without"
                " the content. The test is of the mean over layers; a single layer outside the band"
                " is no finding."
                " Grey bands run from a landmark’s mean to its 95th percentile."
                " Bars: of the ceiling, the range over random splits;"
                " of the cosines, from which the noise of both means is taken out,"
                " 95 % jackknife intervals over prompts."
                " Overlaps have no interval of their own,"
                " so a small lead over the benign fine-tune may be chance."
            ),
            name="lines",
            lead=True,
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
            kind="forest",
            table="overlap_difference",
            x="model",
            y="difference",
            title="Overlap with itself minus overlap with the benign update",
            caption=(
                "Variance-weighted; bars: 95 % jackknife over evaluation domains. Two runs of one"
                " recipe differ by some hundredths, so 0 is no null: dotted is the mean of adapters"
                " on permuted careful answers."
            ),
            colour="position",
            null="null_mean",
            hover=("null_low", "null_q95", "domains"),
            name="difference",
        ),
        Plot(
            kind="heatmap",
            table="overlap_groups",
            x="site",
            y="overlap",
            title="Overlap with each group of questions",
            caption="Equal numbers; own domain is a positive control.",
            colour="group",
            facet="model position",
            hover=("cosine", "n"),
            name="groups",
        ),
    ),
    tables={
        "overlap_test": Table(
            "One row per fine-tune, position and statistic: mean over layers,"
            " beside adapters trained on permuted careful answers.",
            [
                "model position measure value null_mean null_low null_q95 p p_holm smallest_p_holm",
                "split_half benign_value benign_p adapters layers answered why n",
            ],
        ),
        "overlap_layers": Table(
            "One row per fine-tune, place and statistic: what overlap_test averages over layers,"
            " beside the same adapters there; described, and not tested.",
            [PLACE, "measure k value null_mean null_low null_q95 benign_value"],
        ),
        "overlap_landmarks": Table(
            "One row per fine-tune, position, landmark and statistic: mean over layers and draws;"
            " of updates the length of ΔW and the damage to neutral text.",
            ["model position landmark measure value scale nats parent_nats comparable"],
        ),
        "overlap_domains": Table(
            "One row per pair of fine-tunes of different domains and position:"
            " centred cosine of their shifts on prompts of third domains, prompt by prompt,"
            " beside pairs of adapters trained on permuted careful answers.",
            [
                "model second_model kind domain_pair position value null_mean null_q95 p p_holm",
                "means_cosine means_null_mean means_null_q95 means_p",
                "null_pairs layers answered why n",
            ],
        ),
        "overlap_difference": Table(
            "One row per fine-tune and position: overlap of its shifts on training and evaluation"
            " prompts minus the mean overlap of one side with the benign fine-tune's other side,"
            " and the same of adapters trained on permuted careful answers.",
            [
                "model position",
                *measures("difference"),
                "null_mean null_low null_q95 layers domains n",
            ],
        ),
        "overlap_groups": Table(
            "One row per fine-tune, place and group of questions:"
            " overlap at the group's number of prompts, and cosine of mean shifts.",
            [PLACE, "group k overlap", *measures("cosine"), "n"],
        ),
        "overlap_by_k": Table(
            "One row per fine-tune, place and k.",
            [PLACE, "k overlap benign", "null_mean null_q95", "n"],
        ),
        "overlap": Table(
            "One row per fine-tune, place, centring and comparison,"
            " with its landmark where it has one.",
            [
                PLACE,
                "k center measure comparison",
                VALUE,
                "null_kind null_mean null_sd null_q95 n",
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
