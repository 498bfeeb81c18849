"""What the same training does without the content: nulls and landmarks that are trained or drawn,
beside which a fine-tune's shifts are read.
"""

from emlens.controls.null_training import TrainingNull, training_null

__all__ = ["TrainingNull", "training_null"]
