"""What a request may ask for: one frozen set of options, checked when it is made.

What help, `/set` and the command line say of an option stands with its field. MLX is not imported
here: what needs it is made from the options in `selector.py`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from mlx_eagle.errors import EagleError
from mlx_eagle.option import (
    Choice,
    JsonSchema,
    Number,
    Pairs,
    Switch,
    Text,
    Texts,
    TreeSizes,
    Whole,
    option,
    options_of,
)
from mlx_eagle.sampling.options import ACCEPTANCE, MATCH, SamplingOptions
from mlx_eagle.static_tree import Tree

if TYPE_CHECKING:
    import mlx.core as mx

    from mlx_eagle.sampling.token_selector import LogitsProcessor


@dataclass(frozen=True, kw_only=True)
class GenerationOptions(SamplingOptions):
    """How to generate; the names are mlx-lm's where it has one.

    Attributes:
        max_tokens: most tokens to generate.
        temperature: 0 is greedy; see `SamplingOptions` for top_p, top_k, min_p and seed.
        sampler: a sampler made for mlx-lm, instead of these; it draws from mlx's own generator,
            and must depend on nothing else but its argument.
        repetition_penalty: divides the logits of recent tokens (arXiv 1909.05858); None: off.
        presence_penalty: subtracted once from the logits of recent tokens; None: off.
        frequency_penalty: subtracted for every recent occurrence of a token; None: off.
        repetition_context_size: tokens that are recent; likewise for the other two.
        logit_bias: what to add to the logit of a token id.
        logits_processors: functions made for mlx-lm, after the penalties: tokens [T] and logits
            [1, V] to logits [1, V]. They see all tokens of prompt and answer so far, are called
            once for every drafted node, and must depend on nothing but their arguments.
        json_schema: the answer is JSON that this schema allows; a dict or JSON text.
        regex: the answer matches this pattern as a whole.
        stop: strings that end the answer; they are not part of its text.
        template_args: what the chat template is given besides the messages, such as
            `enable_thinking`; names that it does not know have no effect.
        tools: functions that the answer may call, as JSON schemas for the template (the format of
            OpenAI's API); None: none.
        tool_choice: "auto": calls of tools keep to the tools' schemas; "required": the answer
            begins with one; the name of a tool: with one of it; None: calls are as the model
            writes them.
        parallel_tool_calls: False ends an answer whose calls keep to schemas after the first one.
        thinks_first: a thought may come before what a schema or `tool_choice` demands.
        thinking_budget: most tokens of thoughts in an answer; a thought that is longer is ended
            there, and the answer goes on. None: as long as the model thinks.
        overflow: what to do with messages that do not fit into the context: "refuse" them, or
            "truncate" by leaving out the oldest turns, which the statistics count.
        speculate: False decodes plainly, through the same loop.
        ignore_eos: go on to `max_tokens` whatever the model says.
        tree: the shape of every round's tree; None leaves the choice to the planner.
            Trees may be of a fixed structure too (`StaticTree`, of Medusa heads `MeasuredTree`).
        acceptance: which drafts are accepted where tokens are drawn. "match": those that the
            target's own draw is, so that drafting does not change the text of a seed. "ratio":
            by the ratio of the probabilities of target and draft model, whose drafts are drawn;
            the text has the target's distribution, and for a seed it depends on the trees too.
            "typical": what the target finds likely enough (Medusa), which is lossy: the text does
            not have the target's distribution.
        logprobs: let every response carry the log-probabilities its token was chosen from.
        prefill_step_size: prompt tokens per forward.
        progress: called with (prompt tokens done, prompt tokens in all) during prefill.
    """

    max_tokens: int = option(
        256,
        "Longest answer, in tokens.",
        Whole(1),
        "length",
        flags=("-n", "--max-tokens"),
        short="tokens",
    )
    sampler: "Callable[[mx.array], mx.array] | None" = None
    repetition_penalty: float | None = option(
        None,
        "Divide the logits of recent tokens by N, e.g. 1.1.",
        Number(0, is_open=True),
        "sampling",
        short="penalty",
        unset="none",
    )
    repetition_context_size: int = 20
    presence_penalty: float | None = option(
        None,
        "Subtract N from the logits of recent tokens.",
        Number(-2, 2, is_bound=False),
        "sampling",
        unset="none",
    )
    presence_context_size: int = 20
    frequency_penalty: float | None = option(
        None,
        "Subtract N for every recent use of a token.",
        Number(-2, 2, is_bound=False),
        "sampling",
        unset="none",
    )
    frequency_context_size: int = 20
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logits_processors: "Sequence[LogitsProcessor]" = ()
    json_schema: str | dict[str, Any] | None = option(
        None,
        "The answer is JSON that the schema in FILE allows.",
        JsonSchema(),
        "content",
        short="schema",
        unset="none",
    )
    regex: str | None = option(
        None,
        "The answer matches PATTERN as a whole.",
        Text("PATTERN"),
        "content",
        short="regex",
        unset="none",
    )
    stop: Sequence[str] = option(
        (), "End the answer before TEXT; repeatable.", Texts(), "content", in_chat=False
    )
    template_args: Mapping[str, Any] | None = option(
        None,
        "What the chat template is told, several with commas: enable_thinking=false.",
        Pairs(),
        "content",
        flags=("--template-arg", "--template-args"),
        unset="none",
    )
    tools: Sequence[Mapping[str, Any]] | None = None
    tool_choice: str | None = None
    parallel_tool_calls: bool = True
    thinks_first: bool = False
    thinking_budget: int | None = option(
        None,
        "End the model's thoughts after N tokens, and go on with the answer.",
        Whole(0),
        "length",
        unset="none",
    )
    overflow: Literal["refuse", "truncate"] = option(
        "refuse",
        "Refuse what does not fit into the context, or leave out the oldest turns.",
        Choice(("refuse", "truncate")),
        "content",
    )
    speculate: bool = option(
        True, "Draft with the head, or decode plainly.", Switch(), "drafting", short="speculate"
    )
    ignore_eos: bool = option(
        False,
        "Go on to --max-tokens whatever the model says.",
        Switch(),
        "length",
        in_chat=False,
    )
    tree: Tree | None = option(
        None,
        "Draft this tree every round: depth, width, drafted tokens; 4 is a chain. Or a fixed "
        "structure: eagle1, mc_sim_7b_63, or of Medusa heads static:N from what calibrate "
        "measured. Default: what pays best.",
        TreeSizes(),
        "drafting",
        short="tree",
        unset="auto",
    )
    acceptance: str = option(
        MATCH,
        "Which drafts are accepted where tokens are drawn: match, those that the target draws "
        "itself; ratio, by the ratio of the probabilities of target and draft model; typical, what "
        "the target finds likely enough, which is lossy.",
        Choice(ACCEPTANCE),
        "drafting",
    )
    logprobs: bool = False
    prefill_step_size: int = 2048
    progress: Callable[[int, int], None] | None = None

    def __post_init__(self) -> None:
        if self.stop is None:
            object.__setattr__(self, "stop", ())
        if self.logits_processors is None:
            object.__setattr__(self, "logits_processors", ())
        if self.logit_bias is None:
            object.__setattr__(self, "logit_bias", {})
        super().__post_init__()
        self._check_counts()
        self._check_biases()
        if callable(self.logits_processors) or not all(map(callable, self.logits_processors)):
            raise ValueError("logits_processors must be a list of functions")
        tools = self.tools if isinstance(self.tools, list | tuple | None) else [None]
        if not all(isinstance(tool, Mapping) for tool in tools or ()):
            raise ValueError("tools must be a list of JSON schemas (dict)")
        self._check_pairs()

    def _check_counts(self) -> None:
        """Refuse sizes that the command line does not know and that are none."""
        sizes = ("repetition_context_size", "presence_context_size", "frequency_context_size")
        for name in (*sizes, "prefill_step_size"):
            value = getattr(self, name)
            if fault := Whole(1).fault(value):
                raise ValueError(f"{name} is {value!r}; {fault}")

    def _check_biases(self) -> None:
        """Refuse biases that are no numbers."""
        for token, bias in self.logit_bias.items():
            if fault := Number().fault(bias):
                raise ValueError(f"logit_bias of token {token} is {bias!r}; {fault}")

    def _check_pairs(self) -> None:
        """Refuse options that contradict each other."""
        if self.json_schema is not None and self.regex is not None:
            raise ValueError("json_schema and regex were both given; an answer follows one")
        if self.ignore_eos and (self.json_schema is not None or self.regex is not None):
            raise ValueError("ignore_eos was given with a grammar, whose answers end by themselves")
        if self.sampler is not None and self.acceptance != MATCH:
            raise ValueError(
                f"sampler and acceptance {self.acceptance!r} were both given; a sampler gives no "
                "probabilities to accept by"
            )
        if self.sampler is not None:
            own = vars(SamplingOptions())
            given = [name for name, default in own.items() if getattr(self, name) != default]
            if given:
                raise ValueError(
                    f"sampler and {given[0]} were both given; a sampler has its own "
                    "(mx.random.seed seeds it)"
                )

    def check_bias(self, vocab_size: int) -> None:
        """Refuse biases of tokens that a target of `vocab_size` tokens does not have.

        Raises:
            EagleError: naming the first of them.
        """
        for token in self.logit_bias:
            if type(token) is not int or not 0 <= token < vocab_size:
                raise EagleError(
                    f"logit_bias names token {token!r}, but the target has {vocab_size} tokens, "
                    "from 0 on"
                )

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is taken, as far as it can be known."""
        return self.temperature == 0 and self.sampler is None

    @property
    def rule(self) -> str:
        """By which rule drafts are accepted: where nothing is drawn, all of them are "match"."""
        return MATCH if self.is_greedy else self.acceptance

    @property
    def sampling(self) -> dict[str, Any]:
        """The options of a seeded draw, by name."""
        return {name: getattr(self, name) for name in options_of(SamplingOptions)}
