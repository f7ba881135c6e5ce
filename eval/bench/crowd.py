"""How many different people the prior has room for.

    python eval/bench/crowd.py [--people N]

Draws codes for N people as a run does and reports redraws, people who could not be kept apart, the
nearest pair, the time, and the share of pairs closer than the thresholds of `thresholds.py`.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from anonymize.generators import Inpaint
from anonymize.identities import LIMIT, invent

FMR = {1e-2: 0.613, 1e-3: 0.700, 1e-4: 0.756}
"""Cosine between codes of non-mated pairs at false match rates, from `thresholds.py`."""


def main() -> None:
    """Reads the arguments, measures, prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--people", type=int, default=10_000)
    args = parser.parse_args()
    prior = Inpaint().prior
    began = time.perf_counter()
    invented = invent(prior, bytes(32), {str(i): None for i in range(args.people)})
    spent = time.perf_counter() - began
    codes = np.stack([person.code for person in invented.values()])
    nearest, over, pairs = -1.0, dict.fromkeys(FMR, 0), len(codes) * (len(codes) - 1) // 2
    for start in range(0, len(codes), 1000):
        block = codes[start : start + 1000] @ codes.T
        block[np.arange(len(block))[:, None] + start >= np.arange(len(codes))] = -1
        nearest = max(nearest, float(block.max()))
        for rate, limit in FMR.items():
            over[rate] += int((block > limit).sum())
    draws = np.array([person.draws for person in invented.values()])
    print(
        f"{len(codes)} people in {spent:.1f} s, {draws.mean():.2f} draws each, {draws.max()} most"
    )
    print(f"not kept apart at cosine {LIMIT}: {sum(not p.apart for p in invented.values())}")
    print(f"nearest pair: cosine {nearest:.3f}")
    for rate, count in over.items():
        print(f"pairs above the threshold at FMR {rate:g} ({FMR[rate]}): {count} of {pairs}")


if __name__ == "__main__":
    main()
