"""Writes ops/tests/fixtures/webshop/random.json.gz: what CPython's own `random` makes of the fixture's products.

webshop_random.py FIXTURES   prices drawn with seed 233, then limits, then goals shuffled with seed 233: for people's
                             goals and for synthetic ones; and raw draws of a few seeds. Standard library only.
"""

import gzip
import itertools
import json
import pathlib
import random
import sys

here = pathlib.Path(sys.argv[1])


def load(name):
    return json.loads(gzip.decompress((here / f"{name}.json.gz").read_bytes()))


def draws(seed):
    random.seed(seed)
    words = [random.getrandbits(32) for _ in range(700)][-3:]
    floats = [random.random() for _ in range(3)]
    between = random.uniform(10.0, 25.5)
    below = [random.randrange(n) for n in (1, 2, 3, 7, 1000, 2**31, 2**32 - 1)]
    pairs = [random.sample(range(n), 2) for n in (2, 3, 4, 4, 4, 4)]
    order = list(range(50))
    random.shuffle(order)
    return {"seed": seed, "words": words, "floats": floats, "uniform": between, "below": below, "pairs": pairs, "order": order}


def limit(price):
    above = [ten for ten in (10.0 * i for i in range(1, 100)) if ten > price][:4]
    if len(above) < 2:
        return 1000000, ""
    upper = max(random.sample(above, 2))
    return upper, f", and price lower than {upper:.2f} dollars"


def goals(kind):
    captured = load("prices")  # pricing, text, price, options
    attributes, human = load("items_ins_v2_1000"), load("items_human_ins")
    random.seed(233)
    prices = {asin: random.uniform(*row[0]) if len(row[0]) == 2 else row[0][0] for asin, row in captured.items()}
    made = []
    for asin, row in captured.items():
        if kind == "human":
            for asked in human.get(asin, []):
                upper, text = limit(prices[asin])
                made.append([asin, asked["instruction"].strip(".") + text, upper])
        else:
            upper, text = limit(prices[asin])
            names = sorted(row[3])
            for values in itertools.product(*(row[3][name] for name in names)):
                chosen = ", and ".join(f"{name}: {value}" for name, value in zip(names, values))
                chosen = f" with {chosen}" if chosen else ""
                made.append([asin, attributes[asin]["instruction"] + chosen + text, upper])
    random.seed(233)
    random.shuffle(made)
    return {"prices": prices, "goals": made}


out = {"draws": [draws(seed) for seed in (0, 233, 2**32 + 5, 2**64 - 1)], "human": goals("human"), "synthetic": goals("synthetic")}
(here / "random.json.gz").write_bytes(gzip.compress(json.dumps(out).encode(), 9, mtime=0))
