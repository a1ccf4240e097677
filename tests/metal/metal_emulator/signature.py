"""The function that MLX writes around a kernel's body, and the entry that calls it for one lane."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from metal_emulator.arrays import METAL_TYPES, HostArray, dtype_name
from metal_emulator.threadgroup_storage import rewrite_threadgroup_storage

MAX_BUFFERS = 31  # of a Metal kernel
N_CONSTANT = 8  # MLX passes inputs with fewer elements in the constant address space

# What a body may name to learn where its lane is: its Metal type and its value in the emulator.
ATTRIBUTES = {
    "dispatch_simdgroups_per_threadgroup": (
        "uint",
        "(g.disp_tg_size.x * g.disp_tg_size.y * g.disp_tg_size.z + 31) / 32",
    ),
    "dispatch_threads_per_threadgroup": ("uint3", "g.disp_tg_size"),
    "grid_size": ("uint3", "g.grid"),
    "quadgroup_index_in_threadgroup": ("uint", "L->tid / 4"),
    "simdgroup_index_in_threadgroup": ("uint", "L->sg"),
    "simdgroups_per_threadgroup": ("uint", "g.nsg"),
    "thread_execution_width": ("uint", "32u"),
    "thread_index_in_quadgroup": ("uint", "L->lane % 4"),
    "thread_index_in_simdgroup": ("uint", "L->lane"),
    "thread_index_in_threadgroup": ("uint", "L->tid"),
    "thread_position_in_grid": ("uint3", "L->pos_grid"),
    "thread_position_in_threadgroup": ("uint3", "L->pos_tg"),
    "threadgroup_position_in_grid": ("uint3", "g.tg_pos"),
    "threadgroups_per_grid": ("uint3", "g.tgs_per_grid"),
    "threads_per_grid": ("uint3", "g.grid"),
    "threads_per_simdgroup": ("uint", "32u"),
    "threads_per_threadgroup": ("uint3", "g.tg_size"),
}


class Buffer(NamedTuple):
    """A kernel's buffer: how it is declared, how the entry passes it, and what is in it."""

    name: str
    space: str  # "const device", "const constant" or "device"
    element: str
    is_reference: bool  # a scalar, which MLX declares as a reference
    array: HostArray
    is_output: bool = False
    is_caller_input: bool = False  # and not a shape, strides or ndim

    @property
    def declaration(self) -> str:
        return f"{self.space} {self.element}{'&' if self.is_reference else '*'} {self.name}"

    def argument(self, index: int) -> str:
        const = "" if self.is_output else "const "
        pointer = f"({const}{self.element}*)b[{index}]"
        return f"*{pointer}" if self.is_reference else pointer


def input_buffers(names: Sequence[str], arrays: Sequence[HostArray], source: str) -> list[Buffer]:
    """Return the buffers of the inputs, with the shapes, strides and ndims that the body names."""
    buffers = []
    for name, array in zip(names, arrays, strict=True):
        space = "const constant" if array.values.size < N_CONSTANT else "const device"
        is_scalar = array.values.ndim == 0
        element = METAL_TYPES[array.dtype]
        buffers.append(Buffer(name, space, element, is_scalar, array, is_caller_input=True))
        if not is_scalar:
            buffers += _layout_buffers(name, array.values, source)
    return buffers


def _layout_buffers(name: str, values: NDArray[Any], source: str) -> list[Buffer]:
    """Return what a body asks about an input's layout; strides are in elements."""
    strides = np.array(values.strides, np.int64) // values.itemsize
    layout = [
        Buffer(f"{name}_shape", "const constant", "int", False, _host(values.shape, "int32")),
        Buffer(f"{name}_strides", "const constant", "int64_t", False, _host(strides, "int64")),
        Buffer(f"{name}_ndim", "const constant", "int", True, _host(values.ndim, "int32")),
    ]
    return [buffer for buffer in layout if buffer.name in source]


def _host(values: Any, dtype: str) -> HostArray:
    return HostArray(np.array(values, dtype), dtype)


def output_buffers(
    names: Sequence[str], arrays: Sequence[HostArray], is_atomic: bool
) -> list[Buffer]:
    """Return the buffers of the outputs; atomic ones are declared as `atomic<T>`."""
    buffers = []
    for name, array in zip(names, arrays, strict=True):
        element = METAL_TYPES[array.dtype]
        element = f"atomic<{element}>" if is_atomic else element
        buffers.append(Buffer(name, "device", element, False, array, is_output=True))
    return buffers


def attributes_of(source: str) -> list[str]:
    """Return the attributes that a body names, in MLX's order.

    MLX looks for the words anywhere, also inside longer ones and in comments; so does this.
    """
    return [name for name in ATTRIBUTES if name in source]


def template_texts(template: Sequence[tuple[str, Any]]) -> tuple[str, str]:
    """Return the line that declares the template parameters and the list of their values."""
    if not template:
        return "", ""
    declared, values = [], []
    for name, value in template:
        if isinstance(value, bool | int):
            declared.append(f"{type(value).__name__} {name}")
            values.append(str(value).lower())
        else:
            declared.append(f"typename {name}")
            values.append(METAL_TYPES[dtype_name(value)])
    return f"template <{', '.join(declared)}>\n", f"<{', '.join(values)}>"


def signature(buffers: Sequence[Buffer], source: str, template: Sequence[tuple[str, Any]]) -> str:
    """Return the kernel's head, up to the opening brace of its body."""
    parameters = [f"{buffer.declaration} [[buffer({i})]]" for i, buffer in enumerate(buffers)]
    parameters += [f"{ATTRIBUTES[name][0]} {name} [[{name}]]" for name in attributes_of(source)]
    head = "[[kernel]] void mtl_kernel(\n  " + ",\n  ".join(parameters) + ") {\n"
    return template_texts(template)[0] + head


def entry(buffers: Sequence[Buffer], source: str, template: Sequence[tuple[str, Any]]) -> str:
    """Return the function that the scheduler calls on each lane's stack.

    It only checks types where address spaces are compiled as such: those builds run nothing.
    """
    arguments = [buffer.argument(index) for index, buffer in enumerate(buffers)]
    arguments += [f"mtl_u3({ATTRIBUTES[name][1]})" for name in attributes_of(source)]
    instance = "mtl_kernel" + template_texts(template)[1]
    return (
        f"#ifdef MTL_SPACES\nauto* mtl_use = &{instance};\n#else\n"
        'extern "C" MTL_NOSAN void mtl_entry(void** b) {\n'
        "  MtlLane* L = mtl_cur; auto& g = mtl_grp; (void)L; (void)g;\n"
        f"  {instance}({', '.join(arguments)});\n}}\n#endif\n"
    )


def program(
    buffers: Sequence[Buffer], source: str, header: str, template: Sequence[tuple[str, Any]]
) -> str:
    """Return the C++ text of a kernel for these buffers.

    The `#line` marks give compiler messages and findings the line numbers of the kernel's own text.

    Raises:
        ValueError: if there are more buffers than Metal binds, or a template parameter has no name.
    """
    if len(buffers) > MAX_BUFFERS:
        raise ValueError(f"{len(buffers)} buffers: Metal binds {MAX_BUFFERS} to a kernel at most")
    for name, _ in template:
        if not re.fullmatch(r"[A-Za-z_]\w*", name):
            raise ValueError(f"{name!r} is no name of a template parameter")
    return "".join(
        [
            '#include "kernel_prelude.h"\n#line 1 "kernel_header"\n',
            rewrite_threadgroup_storage(header),
            '\n#line 1 "kernel_signature"\n',
            signature(buffers, source, template),
            '#line 1 "kernel_body"\n',
            rewrite_threadgroup_storage(source),
            '\n}\n#line 1 "kernel_entry"\n',
            entry(buffers, source, template),
        ]
    )
