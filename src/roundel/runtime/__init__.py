"""Packed weights at work: their layout, products with them by kernels or by torch, and the modules that hold them."""
