"""What the report shows of the study `direction_transfer`."""

from emlens.results.columns import Measure
from emlens.results.sections import Plot, Section
from emlens.results.tables import Table
from emlens.results.vocabulary import measures, word

EFFECTS = measures("restoration aligned coherent misaligned aligned_change coherent_change")
"""What an intervention does to the answers."""
DAMAGE = measures("kl cross_entropy_change")
"""What it does to neutral text."""

SECTION = Section(
    method=(
        "Candidates for a fine-tune’s direction are its shifts against its parent at every layer"
        " and position, as they are and whitened, and, where scores come with answers, contrasts of"
        " its own misaligned (aligned ≤ 30) and aligned (> 70) answers that are coherent (> 50),"
        " averaged over answer tokens: within the fine-tune, against the parent on the same text,"
        " and both at once; the one that restores most on the selection"
        " questions, at bounded damage, is taken."
        " Every arm removes its direction from what attention and MLP write,"
        " in every block and at every token,"
        " and sets it to the parent’s mean at the end of the prompt;"
        " the direction itself is also removed after every block."
        " Restoration is (ablated − fine-tuned) / (instruct − fine-tuned),"
        " a ratio of means over questions outside the training domain,"
        " with a bootstrap over domains; it is undefined where nothing was lost"
        " or the denominator’s interval includes 0."
        " Questions used to extract, to select and to report are disjoint."
        " A direction that works only in the last layer is a readout, not a mediator."
    ),
    reference=(
        "Ablation after arXiv 2406.11717 and arXiv 2506.11618; contrasts of answers after"
        " arXiv 2506.11618."
    ),
    plots=(
        Plot(
            kind="direction_by_layer",
            table="directions",
            title="The direction, layer by layer",
            caption=(
                "The chosen extraction and position. Top: restoration on the selection questions."
                " Middle: agreement of two halves of the prompts,"
                " cosine with the direction planted in the organism (where there is one)"
                " and with the unembedding contrast of the answer words."
                " Bottom: coherence under ablation. The last layer is shaded."
            ),
            name="directions",
        ),
        Plot(
            "line",
            "answer_contrasts",
            "layer",
            "text_share",
            "How much of a direction from answers is text?",
            "Share of the direction’s squared length that lies along the parent’s own difference"
            " between the same answers; 1: nothing but text. Bands are 95 % jackknife intervals"
            " over questions.",
            colour="extraction",
            facet="model",
            x_title="layer",
            y_title="share",
            optional=True,
        ),
        Plot(
            kind="restoration_forest",
            table="arms",
            title="Restoration against every control",
            caption=(
                "Share of the lost alignment that removing a direction restores, on held-out"
                " questions, with 95 % intervals; 1 is all (dotted). In bold: the arms that remove"
                " the fine-tune’s own direction, and the strongest control."
                " Point at a control for the direction’s lead over it."
            ),
            name="restoration",
            lead=True,
        ),
        Plot(
            kind="ablation_forest",
            table="arms",
            title="Ablation arms",
            caption=(
                "Held-out questions. Rows in bold remove the fine-tune’s own direction,"
                " the other rows are controls;"
                " the last rows apply the same edit to the instruct model, which should not suffer."
                " Dotted line: full restoration. Intervals are 95 %."
            ),
            name="arms",
        ),
        Plot(
            kind="steering_response",
            table="steering",
            title="Steering: dose and response",
            caption=(
                "The direction subtracted from the fine-tune (left) and added to the parent (right)"
                " at its own layer and every token, in multiples of its length (0, 0.5, 1, 2, 4),"
                " beside one random vector of the same length"
                " drawn from the activation covariance."
                " Shaded: the usable doses of the direction. Grey: doses at which coherence fell by"
                " more than 10 points, or damage on neutral text passed 0.1 nats a token; what"
                " happens there is that of a broken model."
                " Questions outside the training domain; bands are 95 % intervals over them."
            ),
            name="steering",
            lead=True,
        ),
        Plot(
            kind="transfer_matrix",
            table="transfer",
            title="Does a direction work in other fine-tunes?",
            caption=(
                "Row: where the direction was taken. Column: where it was removed."
                " Numbers are restoration with 95 % intervals"
                " on questions outside both training domains;"
                " under them the strongest control in the column’s fine-tune,"
                " from the arms above (its own chosen layer, questions outside its own domain)."
            ),
            name="transfer",
            lead=True,
        ),
    ),
    tables={
        "candidates": Table(
            "One row per candidate for a fine-tune’s direction, on the selection questions;"
            " which one was chosen.",
            [
                "model candidate site position layer extraction chosen norm instruct_kl",
                *EFFECTS,
                *DAMAGE,
                "n dropped method",
            ],
        ),
        "answer_contrasts": Table(
            "One row per fine-tune, contrast of answers and layer, on the extraction questions:"
            " reliability, and how much of it is text content, the difference that the parent"
            " shows between the same answers (missing where both models read one text);"
            " intervals are jackknife intervals over questions.",
            [
                "model site position extraction layer weighting norm relative_norm",
                "split_half_cosine",
                *measures("text_cosine text_share"),
                "answers_per_class base_questions",
            ],
        ),
        "directions": Table(
            "One row per fine-tune and layer, on the selection questions.",
            [
                "model site position extraction layer last norm relative_norm",
                "split_half_cosine cosine_unembedding cosine_planted",
                Measure(word("restoration"), "low", "high"),
                "coherent coherence_loss kl instruct_kl questions n",
            ],
        ),
        "arms": Table(
            "One row per arm, on the report questions.",
            [
                "model site role arm on control draws",
                *EFFECTS,
                *DAMAGE,
                *measures("lead"),
                "restoration_max_draw cosine n dropped method",
            ],
        ),
        "steering": Table(
            "One row per steered model, vector and coefficient.",
            [
                "model steered vector site coefficient",
                *measures("aligned coherent misaligned aligned_change"),
                *measures("coherent_change"),
                "n usable",
            ],
            optional=DAMAGE,
        ),
        "windows": Table(
            "One row per steered model and vector: doses around 0 at which coherence stays and"
            " damage is bounded, and what the next dose breaks.",
            ["model steered vector site dose_low dose_high ended_below ended_above"],
        ),
        "transfer": Table(
            "One row per pair of fine-tunes: the direction of one, ablated in the other.",
            [
                "direction_of ablated_in same_domain site cosine same_site",
                Measure(word("restoration"), "low", "high"),
                *measures("coherent_change kl"),
                "n method strongest_control",
            ],
        ),
        "answer_tokens": Table(
            "One row per fine-tune, answer, layer and token, of the report questions whose score"
            " fell most: how far the token lies along the fine-tune’s direction.",
            ["model question direction_of site layer token_index token prompt projection sink"],
        ),
        "question_sets": Table(
            "One row per question: what it was used for.", ["question group used_to"]
        ),
    },
)
