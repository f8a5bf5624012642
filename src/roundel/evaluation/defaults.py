"""What is measured, and on how long windows, where nothing is said."""

# Text for a run's report: English that every Python carries, so that every machine has it.
HELD_OUT = "pydoc"
# Tokens per window, of a model that reaches so far.
WINDOW = 2048
