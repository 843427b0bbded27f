"""Sides in the process of the test, which start at once."""

from __future__ import annotations

from e2rank_rag.bench.pairs import timed
from e2rank_rag.bench.settings import Settings, Sizes
from e2rank_rag.bench.sides import Missing, builder

TINY = Sizes(
    documents=3,
    index=6,
    rounds=2,
    queries=2,
    candidates=(2, 5),
    chain_queries=1,
    depths=(0, 2),
    engines=(7,),
    peak=16,
    peak_seconds=0.001,
)


class Here:
    """A `Side` of the same builder; `environment` cannot change a running process."""

    def __init__(self, build, options, environment):
        try:
            self.about, self._answer = builder(build)(**options)
        except ImportError as error:
            raise Missing(str(error)) from error

    def __call__(self, **request):
        return timed(lambda: self._answer(**request))

    def close(self):
        self._answer = None


def tiny(model, **options):
    return Settings(threads=1, model=str(model), sizes=TINY, **options)
