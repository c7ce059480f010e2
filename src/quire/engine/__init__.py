"""The engine: the step loop and its two fronts, `LLM` for scripts and `AsyncEngine` for servers."""
