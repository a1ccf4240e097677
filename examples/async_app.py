"""An asyncio app: answers stream while the event loop goes on, and a long one is cancelled.

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
    """Ask two questions; the second answer is given a third of a second from its first word."""
    worker = mlx_eagle.Worker()
    beats: list[float] = []
    ticking = asyncio.create_task(tick(beats))
    session = await worker.acall(lambda: mlx_eagle.load().session())

    async def answer(question: str, seconds: float | None = None) -> None:
        stream = worker.astream(lambda: session.ask(question, max_tokens=400), session.cancel)
        async with asyncio.timeout(None) as limit:
            async for response in stream:
                print(response.text, end="", flush=True)
                if seconds is not None and limit.when() is None:
                    limit.reschedule(asyncio.get_running_loop().time() + seconds)

    await answer("What does os.path.join do?")
    print("\n---")
    try:
        await answer("Show me the source of textwrap.wrap.", 0.33)
    except TimeoutError:
        print("\n--- enough; what was said so far stays in the conversation:")
    print(len(session.messages), "messages;", len(beats), "beats meanwhile")
    ticking.cancel()


if __name__ == "__main__":
    asyncio.run(main())
