"""The HTTP server: OpenAI's interface over the inference engine, and a little more."""
