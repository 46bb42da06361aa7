"""lpt_jax: train language models, end to end, to write user profiles that recommend well."""

import os

os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # it runs without torch here

__version__ = "0.2.0"
