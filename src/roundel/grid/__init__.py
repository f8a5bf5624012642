"""Numbers to integers and back: grids, the integers of a weight, how they are packed and counted."""
