"""A local server for apps and agents: the APIs of OpenAI and Anthropic on one engine.

Start at `app.py`: a request is checked (`guard.py`, a body's own module), prepared (`prepare.py`),
waits its turn (`desk.py`), is answered on the engine's thread (`answer_events.py`) as one stream of
events (`events.py`), which the writer of its API turns into lines or into one JSON object.
"""
