"""Conversations: a request, the stream of its answer, and what is kept between them."""
