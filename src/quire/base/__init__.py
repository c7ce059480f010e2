"""The vocabulary every other package shares: settings, requests, steps, outputs, errors. Standard library only."""
