"""Commands: read arguments, call the api, print. No logic here."""

import os

# Set before the libraries are imported, which is when they look: their bars and advice would run into ours.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("COMPRESSED_TENSORS_LOG_DISABLED", "true")
