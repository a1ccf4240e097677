"""Stream an answer, with what speculation gave: the smallest app.

python examples/stream.py "What does shutil.copyfile return?"
python examples/stream.py --model my-target "Why is the sky blue?"
"""

import argparse

import mlx_eagle


def main() -> None:
    """Answer one question."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("question", nargs="?", default="What is the signature of zip?")
    parser.add_argument("--model", help="a folder or a hub repository; default: as for the chat")
    arguments = parser.parse_args()

    engine = mlx_eagle.load(arguments.model)
    messages = [{"role": "user", "content": arguments.question}]
    for response in engine.stream_generate(messages, max_tokens=120, temperature=0.7, seed=1):
        print(response.text, end="", flush=True)
    stats = response.stats
    assert stats is not None, "the last response has statistics"
    print(f"\n\n{stats.generation_tokens} tokens in {stats.rounds + 1} target forwards")


if __name__ == "__main__":
    main()
