"""Writes reviews and metadata in the format of Amazon Reviews 2023, as many as wanted, to measure the reader by.

    python benchmarks/made_up_reviews.py FOLDER --reviews=17000000

Users and items are as skewed as the real ones (Zipf); texts have a median of about 200 letters.
"""

import argparse
import json
from pathlib import Path

import numpy as np

WORDS = np.array(
    "the a film story of and with love war good bad slow great actor scene music again watch family season show night "
    "city man woman child old new funny sad dark bright ending plot cast twice never always disc picture sound".split()
)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--reviews", type=int, default=17_000_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(options.seed)
    users, items = max(options.reviews * 3 // 8, 10), max(options.reviews // 23, 10)  # Movies_and_TV's proportions
    texts = [" ".join(rng.choice(WORDS, n)) for n in np.minimum(rng.lognormal(3.6, 1.0, 4096).astype(int) + 1, 800)]
    with open(options.folder / "Movies_and_TV.jsonl", "w", encoding="utf-8") as out:
        for start in range(0, options.reviews, 200_000):
            n = min(200_000, options.reviews - start)
            user, item = (np.minimum((rng.pareto(a, n) + 1) * size * b, size - 1).astype(int) for a, size, b in
                          ((1.1, users, 0.02), (0.9, items, 0.003)))  # fmt: skip
            columns = zip(user.tolist(), item.tolist(), rng.integers(1, 6, n).tolist(),
                          (1_000_000_000_000 + rng.integers(0, 690_000_000_000, n)).tolist(),
                          rng.integers(0, len(texts), n).tolist(), strict=True)  # fmt: skip
            out.writelines(
                f'{{"rating": {r}.0, "title": "x", "text": "{texts[t]}", "images": [], "asin": "B{i:09d}", '
                f'"parent_asin": "B{i:09d}", "user_id": "AE{u:026d}", "timestamp": {s}, "helpful_vote": 0, '
                '"verified_purchase": true}\n'
                for u, i, r, s, t in columns
            )
    with open(options.folder / "meta_Movies_and_TV.jsonl", "w", encoding="utf-8") as out:
        for i in range(items):
            record = {
                "main_category": "Movies & TV", "title": f"Film {i}", "average_rating": 4.1, "rating_number": 7,
                "features": [], "description": [texts[i % len(texts)]], "price": "12.99", "categories": ["Movies & TV"],
                "parent_asin": f"B{i:09d}", "details": {"Format": "DVD"},
            }  # fmt: skip
            out.write(json.dumps(record) + "\n")
    print(f"{options.reviews} reviews of {items} items by at most {users} users are in {options.folder}")


if __name__ == "__main__":
    main()
