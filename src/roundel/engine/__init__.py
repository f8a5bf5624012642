"""The walk over the blocks."""
