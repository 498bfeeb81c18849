"""emlens: how narrow fine-tuning moves residual streams, and what that says about misalignment.

The stub beside this file lists every public name. Names resolve at first use, so `import emlens`
loads neither torch nor any model library.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
