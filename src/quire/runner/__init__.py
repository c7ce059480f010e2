"""The model on a device: rows, the step, sampling. It computes what the scheduler decided."""
