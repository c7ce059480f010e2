"""Everything that makes quire's built-in demo model, from its corpus to its evaluation.

Knows: the recipe. Does not know: the inference engine, which only the evaluation asks for.
"""
