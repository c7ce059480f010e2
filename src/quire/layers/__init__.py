"""Building blocks of decoders: they hold weights and call ops; which blocks a model has is said in `models`."""
