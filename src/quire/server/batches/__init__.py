"""Files and batches kept by the server: what is stored, and the work that goes on behind interactive requests."""
