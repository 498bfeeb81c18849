"""Labels in the tables `overlap` and `angles`, which figures and the report look rows up by."""

from typing import Final

# in the column `comparison`
TESTED: Final = "train–evaluation"
BENIGN: Final = "benign train–evaluation"
TRAIN_NEUTRAL: Final = "train–neutral text"
CEILING: Final = "split-half ceiling"
RANDOM_SUBSPACES: Final = "random subspaces"

# in the column `null_kind`
ISOTROPIC: Final = "isotropic"
COVARIANCE: Final = "covariance of before activations"

# in the column `center`
CENTRED: Final = "true"
"""Each set's own mean is taken out before its subspace is."""
UNCENTRED: Final = "false"
"""Nothing is taken out: the mean shift counts as a direction like any other."""
MEANS: Final = "means"
"""The cosine of the mean shifts, no overlap of subspaces."""
