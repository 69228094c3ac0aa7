"""A server for the engine, with the endpoints that OpenAI's clients speak."""
