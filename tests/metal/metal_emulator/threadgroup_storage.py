"""Threadgroup arrays, which Metal lets a kernel declare in its body, rewritten for C++.

`threadgroup float part[4];` is storage that the whole threadgroup shares; C++ would put it on each
lane's stack. Only such declarations are rewritten: in `threadgroup float* p` the word qualifies a
pointer's target, and stays.
"""

import re

# Not `threadgroup_barrier`, `threadgroup_position_in_grid`, ...
KEYWORD = re.compile(r"\bthreadgroup\b(?!_)")
TYPE = re.compile(r"\s*(?:const\s+)?(?:metal\s*::\s*)?[A-Za-z_]\w*(?:\s*::\s*\w+)*\s*")
# A name, its dimensions if any, and what ends or continues a declaration of variables.
VARIABLE = re.compile(r"\s*[A-Za-z_]\w*\s*(?:\[[^;]*?\]\s*)*[;,=]")
NAME = re.compile(r"([A-Za-z_]\w*)\s*(?:\[[^,;]*\])*\s*(?:,|;)")


def rewrite_threadgroup_storage(source: str) -> str:
    """Return the source with threadgroup variables as static memory that the emulator knows of.

    Each is followed by its registration, on the same line: line numbers stay those of the kernel.
    """
    pieces, done, n_variables = [], 0, 0
    for match in KEYWORD.finditer(source):
        start = _variables_start(source, match.end()) if match.start() >= done else None
        if start is None:
            continue
        end = source.index(";", start) + 1
        pieces += [source[done : match.start()], "MTL_TGVAR ", source[match.end() : end]]
        for name in NAME.findall(source[start:end]):
            pieces.append(f" MTL_TGREG({name}, {n_variables})")
            n_variables += 1
        done = end
    return "".join([*pieces, source[done:]])


def _variables_start(source: str, after: int) -> int | None:
    """Return where the variables of a declaration start, None if storage is not declared."""
    type_name = TYPE.match(source, after)
    if type_name is None:
        return None
    start = type_name.end()
    if source[start : start + 1] == "<":
        start = _closing(source, start)
    return start if VARIABLE.match(source, start) else None


def _closing(source: str, start: int) -> int:
    """Return the place after the bracket that closes the one at `start`.

    Raises:
        SyntaxError: if none does.
    """
    depth = 0
    for place in range(start, len(source)):
        depth += (source[place] == "<") - (source[place] == ">")
        if depth == 0:
            return place + 1
    raise SyntaxError("a < of a threadgroup variable's type is not closed")
