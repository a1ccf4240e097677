"""Chat templates as publishers write them, shortened, and a small tokenizer that knows their marks.

Each shows another difficulty for whoever wants to know where the answers stand.
"""

from importlib import import_module
from pathlib import Path
from typing import Any

import mlx_eagle
from mlx_eagle.target.tokenizer import read_tokenizer

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# A header before every message, content trimmed, a token before all of it.
LLAMA3 = (
    "{{ '<|begin|>' }}{% for m in messages %}{{ '<|header|>' + m.role + '<|/header|>\n\n' }}"
    "{{ m.content | trim + '<|eot|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|header|>assistant<|/header|>\n\n' }}{% endif %}"
)
# Thoughts only after the last question, and there an empty one too.
QWEN3 = (
    "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}"
    "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' and loop.index0 > ns.last "
    "and (loop.last or m.reasoning_content) %}"
    "{{ '<think>\n' + (m.reasoning_content or '') + '\n</think>\n\n' }}{% endif %}"
    "{{ m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
# The prompt begins a thought, which answers in a conversation do not have.
R1 = (
    "{{ '<|begin|>' }}{% for m in messages %}{% if m.role == 'user' %}{{ '<|User|>' + m.content }}"
    "{% else %}{{ '<|Assistant|>' + m.content.split('</think>')[-1] + '<|eot|>' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|Assistant|><think>\n' }}{% endif %}"
)
# No system prompts; the role of answers is called otherwise.
GEMMA = (
    "{{ '<|begin|>' }}{% if messages[0].role == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% set role = 'model' if m.role == 'assistant' else m.role %}"
    "{{ '<start_of_turn>' + role + '\n' + m.content | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
# Nothing opens an answer, a space stands before it.
MISTRAL = (
    "{{ '<|begin|>' }}{% for m in messages %}{% if m.role == 'user' %}"
    "{{ '[INST] ' + m.content + '[/INST]' }}{% else %}{{ ' ' + m.content + '</s>' }}{% endif %}"
    "{% endfor %}"
)
# The header is written, whether or not an answer is to be opened: it does not ask.
UNASKED = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
# Answers without a mark at their end.
VICUNA = (
    "{% for m in messages %}{{ 'USER: ' if m.role == 'user' else ' ASSISTANT:' }}"
    "{{ m.content if m.role == 'user' else ' ' + m.content + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif %}"
)
MARKS = [
    "<|begin|>",
    "<|header|>",
    "<|/header|>",
    "<|eot|>",
    "<|User|>",
    "<|Assistant|>",
    "<start_of_turn>",
    "<end_of_turn>",
    "[INST]",
    "[/INST]",
    "</s>",
    "<think>",
    "</think>",
    "<|end|>",
    "<|return|>",
]


# Calls as some families write them: what stands between the marks, key after key.
KEYED_CALLS = {
    "qwen3_coder": (
        "'\n<function=' + c.function.name + '>\n'",
        "'<parameter=' + k + '>\n' + (v | tojson if v is mapping or v is sequence and "
        "v is not string else v | string) + '\n</parameter>\n'",
        "'</function>\n'",
    ),
    "minimax_m2": (
        "'\n<invoke name=\"' + c.function.name + '\">\n'",
        "'<parameter name=\"' + k + '\">' + (v if v is string else v | tojson) + '</parameter>\n'",
        "'</invoke>\n'",
    ),
    "glm47": (
        "c.function.name",
        "'<arg_key>' + k + '</arg_key><arg_value>' + (v if v is string else v | tojson) "
        "+ '</arg_value>'",
        "''",
    ),
}


def keyed_template(family: str) -> str:
    """Return a template that writes calls as a family of KEYED_CALLS does."""
    start, end = call_marks(family)
    name, argument, close = KEYED_CALLS[family]
    return (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}"
        "{% for c in m.tool_calls or [] %}{{ '" + start + "' + " + name + " }}"
        "{% for k, v in c.function.arguments.items() %}{{ " + argument + " }}{% endfor %}"
        "{{ " + close + " + '" + end + "' }}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
        "{% if tools %}{% endif %}"
    )


def call_marks(family: str) -> tuple[str, str]:
    """Return the marks around calls of a family, as mlx-lm's parser has them."""
    module = import_module(f"mlx_lm.tool_parsers.{family}")
    return module.tool_call_start, module.tool_call_end


def demo_tokenizer(template: str | None, family: str | None = None) -> Any:
    """Return mlx-lm's wrapper of the demo tokenizer with MARKS as tokens and another template.

    Args:
        template: None for a target without one.
        family: whose calls mlx-lm's parser is to read.
    """
    tokenizer = read_tokenizer(Path(mlx_eagle.__file__).parent / "demo" / "target")
    inner = tokenizer._tokenizer
    inner.add_special_tokens({"additional_special_tokens": ["<|im_start|>", *MARKS]})
    inner.chat_template = template
    more: dict[str, Any] = {}
    if family is not None:
        marks = list(call_marks(family))
        inner.add_special_tokens(
            {"additional_special_tokens": marks}, replace_extra_special_tokens=False
        )
        more = dict(zip(("tool_call_start", "tool_call_end"), marks, strict=True))
        more["tool_parser"] = import_module(f"mlx_lm.tool_parsers.{family}").parse_tool_call
    return type(tokenizer)(inner, type(tokenizer._detokenizer), tokenizer.eos_token_ids, **more)
