"""KV pages on the host: who holds which page, what may be shared, what may be evicted. Integers only, no tensors."""
