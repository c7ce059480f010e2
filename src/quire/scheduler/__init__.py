"""Who runs in a step, with how many tokens, on which pages: pure decisions over integers, with the clock passed in."""
