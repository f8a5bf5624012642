"""The jobs that a user asks for: quantize, sweep, evaluate, compare, report; each a way through the rooms below."""
