"""A black-box examination of any OpenAI-style server: what clients rely on, line by line; above `base` only."""
