"""Programs that tests start find no PyTorch, as users have none: transformers would import it.

That takes more than twice as long as all the rest of a start.
"""

import sys

sys.modules["torch"] = None  # type: ignore[assignment]  # what the import system takes for "not there"
