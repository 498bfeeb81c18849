"""What the same training does without the content: nulls and landmarks that are trained or drawn,
beside which a fine-tune's shifts are read.
"""

from emlens.controls.null_adapters import NullSetting
from emlens.controls.null_training import training_null

__all__ = ["NullSetting", "training_null"]
