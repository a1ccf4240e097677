"""An asyncio app: answers stream while the event loop goes on, and a slow one is cancelled.

python examples/async_app.py
"""

import asyncio
import time

import mlx_eagle


async def tick(beats: list[float]) -> None:
    """Note the time ten times a second: what a user interface does meanwhile."""
    while True:
        beats.append(time.perf_counter())
        await asyncio.sleep(0.1)


async def main() -> None:
    """Ask two questions; the second answer is given a third of a second."""
    worker = mlx_eagle.Worker()
    beats: list[float] = []
    ticking = asyncio.create_task(tick(beats))
    session = await worker.acall(lambda: mlx_eagle.load().session())

    async def answer(question: str) -> None:
        stream = worker.astream(lambda: session.ask(question, max_tokens=400), session.cancel)
        async for response in stream:
            print(response.text, end="", flush=True)

    await answer("What does os.path.join do?")
    print("\n---")
    try:
        async with asyncio.timeout(0.33):
            await answer("Show me the source of textwrap.wrap.")
    except TimeoutError:
        print("\n--- enough; what was said so far stays in the conversation:")
    print(len(session.messages), "messages;", len(beats), "beats meanwhile")
    ticking.cancel()


if __name__ == "__main__":
    asyncio.run(main())
