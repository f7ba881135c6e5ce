"""What a seed ties together: the same noise for a person's pictures, without an identity code.

    python eval/bench/seeds.py SRC OUT [--people 60] [--images 5] [--steps 4]

Generators that know no identities, hub models above all, have nothing but the seed to make one
person of several pictures. Here the bundled network stands in for them: everybody gets one and the
same code, the middle of the prior, so that pictures differ by noise and context alone.

* `code`: as a run does it, a code per person and noise per picture
* `seed`: noise per person, as `hub` does it
* `nothing`: noise per picture, so whatever ties pictures together is the context's

The table has same-key rank-1 of each, by dlib. Networks that follow their noise more closely than
this one, which starts from pure noise and predicts the clean picture at once, may do better.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from anonymize.eval.report import spread

from anonymize.devices import single_threaded
from anonymize.generators import Inpaint, Job
from anonymize.hub import person_seed
from anonymize.recipe import Recipe
from anonymize.record import Pixels
from anonymize.sweep import Sweep, sweep


class Anybody(Inpaint):
    """`inpaint` with one code for everybody."""

    def __call__(self, jobs: Sequence[Job]) -> list[Pixels]:
        """Draws the same person into every picture, as far as the code goes."""
        middle = self.prior.mean.detach().numpy().mean(0)
        code = np.float32(middle / np.linalg.norm(middle))
        return super().__call__([replace(job, code=code) for job in jobs])


class Seeded(Anybody):
    """The same, with the noise of the person instead of the picture's."""

    def __call__(self, jobs: Sequence[Job]) -> list[Pixels]:
        """Draws from the noise that belongs to each job's person."""
        return super().__call__([replace(job, seed=person_seed(job)) for job in jobs])


def main() -> None:
    """Reads the arguments, makes three releases, prints their consistency."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("src", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--people", type=int, default=60)
    parser.add_argument("--images", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4)
    args = parser.parse_args()
    single_threaded()
    options: dict[str, Any] = {"steps": args.steps}
    names = {"code": "inpaint", "seed": "seeds:Seeded", "nothing": "seeds:Anybody"}
    methods = {n: Recipe(generator=g, generator_options=options) for n, g in names.items()}
    plan = Sweep(
        args.src,
        args.out,
        methods,
        args.people,
        args.images,
        attacks=["oa"],
        utilities=["consistency"],
        workers=2,
    )
    for method in sweep(plan, tell=print)["methods"]:
        value = method["utilities"]["same-key"]
        print(f"{method['name']:8} same-key rank-1 {spread(value) if value else 'not measured'}")


if __name__ == "__main__":
    main()
