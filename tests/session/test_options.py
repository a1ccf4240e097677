"""The options of a request, and what chooses its tokens."""

from dataclasses import fields

import pytest

from mlx_eagle.decoding.prefill import PREFILL_STEP
from mlx_eagle.option import options_of
from mlx_eagle.sampling.options import SamplingOptions
from mlx_eagle.sampling.samplers import SeededSampler
from mlx_eagle.session.options import GenerationOptions
from mlx_eagle.session.selector import make_grammar, make_processors, make_sampler


def test_a_penalty_is_bounded_where_it_is_typed_and_free_in_the_library() -> None:
    assert GenerationOptions(presence_penalty=3.5).presence_penalty == 3.5
    with pytest.raises(ValueError, match="presence_penalty is inf; it must be a finite number"):
        GenerationOptions(presence_penalty=float("inf"))


def test_the_sampler_is_made_from_the_options_that_describe_it() -> None:
    sampler = make_sampler(GenerationOptions(temperature=0.5, top_k=3, seed=7))
    assert sampler == SeededSampler(0.5, 1.0, 3, 0.0, 7)
    assert [field.name for field in fields(SeededSampler)] == list(options_of(SamplingOptions))
    assert make_processors(GenerationOptions()) == []
    assert make_grammar(GenerationOptions()) is None


def test_a_prompt_is_read_in_the_chunks_of_prefill() -> None:
    assert GenerationOptions().prefill_step_size == PREFILL_STEP


def test_c6_none_is_the_default_as_for_mlx_lm() -> None:
    names = ("temperature", "top_p", "top_k", "min_p", "logit_bias", "max_tokens", "stop")
    given = GenerationOptions(**dict.fromkeys(names))
    assert given == GenerationOptions()
