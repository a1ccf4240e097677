"""Methods wrapped on single module instances of a target, and taken off again.

Parameters, their paths, attributes, quantization and saving stay as they were.
"""

import inspect
from collections.abc import Callable
from typing import Any
from weakref import WeakSet

import mlx.core as mx
import mlx.nn as nn

from mlx_eagle.cache.recurrent import RecurrentCache, Update

Undo = Callable[[], None]

# Subclasses whose method was taken off: an instance leaves them as soon as none is above them.
_SPENT: WeakSet[type] = WeakSet()


def replace_method(module: nn.Module, name: str, make: Callable[[Any], Any]) -> Undo:
    """Give one instance a subclass with another method.

    Args:
        module: changed in place; its parameters keep their paths.
        name: the method to replace.
        make: returns it, given the class's present method; both take the module first.

    Returns:
        What takes the method off again; other hooks that were put on since then stay.
    """
    kind = type(module)
    own = {name: make(getattr(kind, name)), "__module__": kind.__module__}
    hooked = type(kind.__name__, (kind,), own)
    module.__class__ = hooked

    def undo() -> None:
        if name in vars(hooked):  # below later hooks the plain method shows through from now on
            delattr(hooked, name)
        _SPENT.add(hooked)
        module.__class__ = next(kind for kind in type(module).__mro__ if kind not in _SPENT)

    return undo


def wrap_method(module: nn.Module, name: str, method: Callable[..., Any]) -> Undo:
    """Give one instance a subclass in which a method is `method(plain, module, ...)`.

    Args:
        module: changed in place; its parameters keep their paths.
        name: the method to replace.
        method: receives the class's present method first, then the module and the arguments.

    Returns:
        As `replace_method`.
    """

    def make(plain: Any) -> Any:
        def wrapped(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            return method(plain, self, *args, **kwargs)

        wrapped.__name__ = method.__name__
        return wrapped

    return replace_method(module, name, make)


def note_updates(model: nn.Module, hooks: list[Undo]) -> None:
    """Let every module that is given a `RecurrentCache` tell it what it was run on.

    Args:
        model: changed in place; parameters and results stay as they were.
        hooks: what undoes it is added to these.
    """
    for _, module in model.named_modules():
        if "cache" in inspect.signature(type(module).__call__).parameters:
            hooks.append(wrap_method(module, "__call__", _noting))


def _noting(plain: Any, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Run a module and note it where it was given a `RecurrentCache`."""
    given = (*args, *kwargs.values())
    cache = next((value for value in given if isinstance(value, RecurrentCache)), None)
    rows = next((v for v in given if isinstance(v, mx.array) and v.ndim > 1), None)
    if cache is None or rows is None:
        return plain(module, *args, **kwargs)
    run = plain.__get__(module)
    return cache.note(Update(run, args, kwargs, rows.shape[1]), lambda: run(*args, **kwargs))
