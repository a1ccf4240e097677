"""Chat templates as publishers write them, shortened, and a small tokenizer that knows their marks.

Each shows another difficulty for whoever wants to know where the answers stand.
"""

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


def demo_tokenizer(template: str | None) -> Any:
    """Return mlx-lm's wrapper of the demo tokenizer with MARKS as tokens and another template.

    Args:
        template: None for a target without one.
    """
    tokenizer = read_tokenizer(Path(mlx_eagle.__file__).parent / "demo" / "target")
    inner = tokenizer._tokenizer
    inner.add_special_tokens({"additional_special_tokens": ["<|im_start|>", *MARKS]})
    inner.chat_template = template
    return type(tokenizer)(inner, type(tokenizer._detokenizer), tokenizer.eos_token_ids)
