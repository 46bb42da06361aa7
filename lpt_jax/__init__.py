"""lpt_jax: train language models, end to end, to write user profiles that recommend well."""

import os

os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # it runs without torch here
os.environ.setdefault("JAX_CPU_ENABLE_ASYNC_DISPATCH", "false")  # why is said in devices.py

__version__ = "0.1.0"
