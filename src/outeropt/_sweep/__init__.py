"""Many trials as one compiled program."""

from outeropt._sweep.devices import use_all_cores as use_all_cores
from outeropt._sweep.engine import drive as drive
from outeropt._sweep.engine import planned as planned
from outeropt._sweep.engine import sweep as sweep
from outeropt._sweep.executors.base import Executor as Executor
from outeropt._sweep.executors.in_process import InProcess as InProcess
from outeropt._sweep.executors.ray import Ray as Ray
from outeropt._sweep.executors.slurm import Slurm as Slurm
from outeropt._sweep.settings import Settings as Settings
from outeropt._sweep.settings import grid as grid
from outeropt._sweep.settings import sample as sample
