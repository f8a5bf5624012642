"""Activations on a grid: the inputs of Linears and the KV cache, in tuning and in service by the same code."""
