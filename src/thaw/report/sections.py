"""The sections of a run's report, in the order of the page."""

from collections.abc import Callable, Sequence

from thaw.report.distance import distance
from thaw.report.evidence import Evidence
from thaw.report.section import Section
from thaw.report.setup import code, commands, configuration, data
from thaw.report.summary import results
from thaw.report.training import cost, curves, schedule

# Each gives its section, or None where the run has nothing to say of it. One that fails is left out and named.
BUILDERS: Sequence[Callable[[Evidence], Section | None]] = (
    results,
    curves,
    schedule,
    distance,
    configuration,
    data,
    code,
    cost,
    commands,
)
