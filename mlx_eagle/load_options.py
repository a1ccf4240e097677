"""What is decided when a model is loaded: one frozen set of options, checked when it is made.

`load`, the command line and the mlx-lm API read the same descriptions. MLX is not imported here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_eagle.errors import EagleError
from mlx_eagle.option import Bytes, Choice, Pairs, Switch, Text, Whole, check_options, option

KV_BITS = (4, 8)
KV_GROUP_SIZES = (32, 64, 128)
TENSOR, PIPELINE = "tensor", "pipeline"
LAUNCHED = "mlx.launch"  # in the place of a hosts file: the processes that it has started


@dataclass(frozen=True)
class LoadOptions:
    """How a target and its head are loaded.

    Attributes:
        dtype: "float32", "float16" or "bfloat16" for everything that is not quantized; None
            keeps the stored type on a GPU and takes float32 on a CPU, where 16 bits are slow.
        calibrate: measure what rounds cost on this machine if that is not on record yet, for a
            few seconds; otherwise published costs stand in, corrected as they prove wrong.
        kv_bits: 8 or 4 quantizes every row of the target's KV cache as it is written, drafted rows
            too, so that speculation changes nothing; that takes less memory. So do a draft model
            and a head that is one more layer of the target.
        kv_group_size: numbers that share a scale in it.
        max_kv_size: rows that the target's cache keeps, and theirs: the first four and the newest.
        head_window: tokens that the head attends to, so that drafting stays as good and as cheap
            as it was on the texts that the head was trained on; 0 is all of them, None is chosen
            for the head. With 0 a GPU copies the head's whole cache for every level of a draft that
            is not checked, because the level before may still be reading it.
        max_context: tokens that a conversation may have; None is what the model was made for.
        template_args: what the chat template is given in every conversation, such as
            `enable_thinking`; names that it does not know have no effect.
        kernels: "auto" uses Metal kernels for a few rows where a trial on this machine found them
            right and faster, "off" never, "force" wherever they are right.
        adapter_path: folder with a LoRA adapter that mlx-lm has made for the target; None: none.
        cache: which kept rows later prompts use: "fast" all of them, "exact" only rows that prefill
            made in whole chunks, so that every prompt is computed in the same pieces whatever was
            kept, and 16-bit numbers round alike.
        memory_limit: bytes that MLX may use before a conversation is refused or ended; None is
            what the device recommends.
        hosts: hosts file in the format of `mlx.launch`: the target is divided among its machines,
            the first of which is this one; "mlx.launch" for the processes that it has started.
            None: this machine alone.
        parallel: how it is divided: "tensor" gives every machine a part of each layer, "pipeline"
            some of the layers; None is what the hosts file says, or else "tensor".

    Raises:
        EagleError: naming the first option that is out of range, when it is made.
    """

    dtype: str | None = option(
        None,
        "Cast what is not quantized.",
        Choice(("float32", "float16", "bfloat16")),
        "loading",
        unset="auto",
        in_chat=False,
    )
    calibrate: bool = option(
        True,
        "Measure this machine before the first chat with a pair, for a few seconds, so that "
        "drafting never costs more than it gives.",
        Switch(),
        "loading",
        in_chat=False,
    )
    kv_bits: int | None = option(
        None,
        "Bits of a number in the cache. Default: the model's own precision.",
        Choice(KV_BITS),
        "loading",
        unset="none",
    )
    kv_group_size: int = option(
        64,
        "Numbers of a quantized cache that share a scale.",
        Choice(KV_GROUP_SIZES),
        "loading",
        is_flag=False,
        in_chat=False,
    )
    max_kv_size: int | None = option(
        None,
        "Rows that the cache keeps: the first four and the newest. Default: all.",
        Whole(16),
        "loading",
        unset="none",
        is_flag=False,
        in_chat=False,
    )
    head_window: int | None = option(
        None,
        "Newest tokens that the head attends to; 0: all. Default: chosen for the head.",
        Whole(0),
        "loading",
        unset="auto",
    )
    max_context: int | None = option(
        None,
        "Tokens that a conversation may have. Default: what the model was made for.",
        Whole(2),
        "loading",
        unset="auto",
    )
    adapter_path: str | None = option(
        None,
        "LoRA adapter for the target, as mlx-lm makes them.",
        Text("DIR"),
        "loading",
        unset="none",
        in_chat=False,
    )
    template_args: Mapping[str, Any] | None = None  # the flag is that of GenerationOptions
    kernels: str = option(
        "auto",
        "Metal kernels for a few rows: where they were found faster here, never, or wherever they "
        "are right.",
        Choice(("auto", "off", "force")),
        "loading",
        in_chat=False,
    )
    memory_limit: int | None = option(
        None,
        "Memory that MLX may use. Default: what the device recommends.",
        Bytes(),
        "loading",
        flags=("--memory",),
        name="memory",
        unset="auto",
    )

    cache_memory: int | None = option(
        None,
        "Memory for rows of conversations that are over. Default: none; serve takes a third.",
        Bytes(),
        "loading",
        unset="none",
        in_chat=False,
    )
    cache: str = option(
        "fast",
        "Kept rows that later prompts use: all of them, or only those that reading the prompt anew "
        "would give to the last bit.",
        Choice(("fast", "exact")),
        "loading",
        in_chat=False,
    )
    cache_disk: int | None = option(
        None,
        "Disk for rows of prompts, which later runs read. Default: none; serve takes 10 GB.",
        Bytes(),
        "loading",
        unset="none",
        in_chat=False,
    )

    hosts: str | None = option(
        None,
        "Hosts file of mlx.launch: the model is divided among these machines. Default: this one.",
        Text("FILE"),
        "loading",
        unset="none",
        in_chat=False,
    )
    parallel: str | None = option(
        None,
        "Each host has a part of every layer, or some of the layers. Default: as the file says.",
        Choice((TENSOR, PIPELINE)),
        "loading",
        unset="auto",
        in_chat=False,
    )

    def __post_init__(self) -> None:
        for name in ("adapter_path", "hosts"):
            if isinstance(getattr(self, name), Path):
                object.__setattr__(self, name, str(getattr(self, name)))
        check_options(self, error=EagleError)
        if self.template_args is not None and (fault := Pairs().fault(self.template_args)):
            raise EagleError(f"template_args is {self.template_args!r}; {fault}")
        if self.kv_bits is not None and self.max_kv_size is not None:
            raise EagleError(
                "kv_bits and max_kv_size were both given; a cache that forgets rows is not "
                "quantized, so choose one"
            )
        if self.hosts is not None:
            self._check_hosts()

    def _check_hosts(self) -> None:
        """Refuse what is not done with hosts.

        Raises:
            EagleError: naming it.
        """
        unsupported = {
            "kv_bits": self.parallel == PIPELINE and self.kv_bits is not None,
            "an adapter": self.adapter_path is not None,
            "kernels force": self.kernels == "force",
            "a cache on disk": bool(self.cache_disk),
        }
        for name, is_asked in unsupported.items():
            if is_asked:
                raise EagleError(f"{name} was asked for with hosts, where it is not supported yet")
