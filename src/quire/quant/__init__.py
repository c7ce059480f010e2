"""Schemes that create, load and apply the weights of linear layers; `interface` is the seam."""
