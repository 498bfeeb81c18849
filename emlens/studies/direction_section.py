"""What the report shows of the study `direction_transfer`."""

from emlens.results.sections import Plot, Section

SECTION = Section(
    method=(
        "Candidates for a fine-tune’s direction are its shifts against its parent at every layer"
        " and position, as they are and whitened; the one that restores most on the selection"
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
    reference="Ablation after arXiv 2406.11717 and arXiv 2506.11618.",
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
                "The direction added to the parent and subtracted from the fine-tune"
                " at its own layer and every token, in multiples of its length (0, 1, 2, 4),"
                " beside one random vector of the same length"
                " drawn from the activation covariance."
                " Questions outside the training domain; bands are 95 % intervals over them."
            ),
            name="steering",
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
