"""The sections of a run's report, in the order of the page."""

from collections.abc import Callable, Sequence

from thaw.report.calibration import calibration
from thaw.report.confusion import classes
from thaw.report.distance import distance
from thaw.report.evidence import Evidence
from thaw.report.explanation import explanation
from thaw.report.letters import letters
from thaw.report.mistakes import mistakes
from thaw.report.ranking import ranking
from thaw.report.residuals import residuals
from thaw.report.section import Section
from thaw.report.setup import code, commands, configuration, data
from thaw.report.similarity import similarity
from thaw.report.sparsity import sparsity
from thaw.report.summary import results
from thaw.report.training import cost, curves, schedule

# Each gives its section, or None where the run has nothing to say of it. One that fails is left out and named.
BUILDERS: Sequence[Callable[[Evidence], Section | None]] = (
    results,
    classes,
    residuals,
    letters,
    ranking,
    calibration,
    mistakes,
    explanation,
    curves,
    schedule,
    distance,
    similarity,
    sparsity,
    configuration,
    data,
    code,
    cost,
    commands,
)
