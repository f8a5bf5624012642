"""Commands: read arguments, call the api, print. No logic here.

Nothing heavy is imported before a command runs: torch and transformers take seconds, which help and mistyped options
should not. So commands call the api as `roundel.quantize` (whose names are imported at first use), and what else a
command prints with is imported in its functions. A test holds it.
"""

import os

# Set before the libraries are imported, which is when they look: their bars and advice would run into ours.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("COMPRESSED_TENSORS_LOG_DISABLED", "true")
# Between two parallel loops torch's threads would wait at work, for milliseconds: a sixth of a tuning run's processor
# time, for nothing (docs/performance.md). About 100 microseconds bridge the short gaps.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
