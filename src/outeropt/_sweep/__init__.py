"""Many trials as one compiled program."""

from outeropt._sweep.devices import use_all_cores as use_all_cores
from outeropt._sweep.engine import sweep as sweep
from outeropt._sweep.settings import Settings as Settings, grid as grid, sample as sample
