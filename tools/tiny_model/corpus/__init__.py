"""The corpus generator: one module per family of tasks, joined by `mixture.py`.

Knows: what the demo model is taught. Does not know: tokens, the network, the trainer.
"""
