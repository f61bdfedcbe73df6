"""Many trials as one compiled program."""

from outeropt._sweep.devices import use_all_cores as use_all_cores
from outeropt._sweep.engine import sweep as sweep
from outeropt._sweep.settings import Settings as Settings
from outeropt._sweep.settings import grid as grid
from outeropt._sweep.settings import sample as sample
