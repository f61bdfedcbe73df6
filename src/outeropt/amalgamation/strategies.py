"""Which unrolls come next: training strategies, as pure functions of the periods that were finished."""

import abc
import dataclasses
import math
from collections.abc import Sequence
from typing import ClassVar

from outeropt.amalgamation.schedules import Schedule, at, check, whole


# The least value of each whole number; others are numbers of at least 0.
_LOWEST = {
    **dict.fromkeys(("num_periods", "num_stages", "num_chances", "max_periods"), 1),
    **dict.fromkeys(("unroll", "depth", "epochs"), 1),
    **dict.fromkeys(("validation_epochs", "validation_depth", "validation_unroll"), 1),
    **dict.fromkeys(("warmup", "validation_warmup", "max_repeat"), 0),
}


@dataclasses.dataclass(frozen=True)
class Plan:
    """The unrolls of one period of training, or of its validation.

    Attributes:
      unroll: inner steps of an unroll.
      depth: unrolls of an episode that follow on one another; the gradient of each stops at its beginning.
      epochs: episodes, each from fresh parameters.
      warmup: unrolls of plain SGD before those of each episode.
      warmup_rate: its learning rate.
      imitation: weight of the imitation loss.
    """

    unroll: int
    depth: int
    epochs: int
    warmup: int
    warmup_rate: float
    imitation: float

    @property
    def unrolls(self) -> int:
        """How many unrolls that is for one task, warm-ups included."""
        return self.epochs * (self.depth + self.warmup)


@dataclasses.dataclass(frozen=True, order=True)
class Place:
    """Where in a training: stage, period, and which attempt at it, all from 0."""

    stage: int
    period: int
    repeat: int


@dataclasses.dataclass(frozen=True)
class Record:
    """A finished period.

    Attributes:
      place: which one.
      validation: its validation loss: the mean meta-loss of the validation's unrolls.
      meta_loss: mean meta-loss of its training.
    """

    place: Place
    validation: float
    meta_loss: float


@dataclasses.dataclass(frozen=True)
class Period:
    """The next thing to do.

    Attributes:
      place: what it is called.
      start: the finished period whose student it starts from; None for the fresh student.
      training: its unrolls.
      validation: those of the validation after it.
    """

    place: Place
    start: Place | None
    training: Plan
    validation: Plan


@dataclasses.dataclass(frozen=True, kw_only=True)
class Strategy(abc.ABC):
    """Schedules of a training, and the rules by which it goes on.

    Numbers may be schedules (`schedules.at`): of the period, or of the stage where there are stages.

    Attributes:
      num_periods: periods.
      unroll: inner steps of an unroll.
      depth: unrolls of an episode.
      epochs: episodes of a period.
      imitation: weight of the imitation loss (`p_teacher` in the published configurations).
      warmup: unrolls of plain SGD at the start of each episode.
      warmup_rate: its learning rate.
    """

    num_periods: int = 5
    unroll: Schedule = 100
    depth: Schedule = 1
    epochs: Schedule = 10
    imitation: Schedule = 1.0
    warmup: Schedule = 0
    warmup_rate: Schedule = 0.05

    name: ClassVar[str]
    has_stages: ClassVar[bool] = False
    has_repeats: ClassVar[bool] = False

    def __post_init__(self):
        for field in dataclasses.fields(self):
            lowest = _LOWEST.get(field.name)
            value = check(field.name, getattr(self, field.name), lowest or 0, is_whole=lowest is not None)
            object.__setattr__(self, field.name, value)

    @abc.abstractmethod
    def next(self, records: Sequence[Record]) -> Period | None:
        """What follows on the periods that are finished, in the order in which they were; None at the end."""

    def best(self, records: Sequence[Record]) -> Place:
        """The finished period with the best student: by validation, of the last stage."""
        return _best([record for record in records if record.place.stage == records[-1].place.stage]).place

    def label(self, place: Place) -> str:
        """The name of a period's checkpoint and log."""
        return f"period_{place.period}.{place.repeat}"

    def plan_of(self, place: Place) -> Plan:
        """The unrolls of a period's training."""
        return self.plan(place.stage if self.has_stages else place.period)

    def plan(self, index: int) -> Plan:
        """The unrolls at one index of the schedules."""
        return Plan(
            whole(self.unroll, index, 1),
            whole(self.depth, index, 1),
            whole(self.epochs, index, 1),
            whole(self.warmup, index, 0),
            at(self.warmup_rate, index),
            at(self.imitation, index),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Simple(Strategy):
    """One period after the other, whatever comes of it.

    Attributes:
      validation_epochs: episodes of a validation.
      validation_depth: unrolls of each.
      validation_unroll: inner steps of an unroll there.
      validation_warmup: unrolls of plain SGD before those; the same for all periods, so that their students
        can be compared.
      validation_warmup_rate: its learning rate.
    """

    num_periods: int = 25
    unroll: Schedule = 20
    depth: Schedule = 25
    validation_epochs: int = 2
    validation_depth: int = 25
    validation_unroll: int = 20
    validation_warmup: int = 0
    validation_warmup_rate: float = 0.05

    name: ClassVar[str] = "simple"

    def next(self, records: Sequence[Record]) -> Period | None:
        last = records[-1].place if records else None
        return self._period(0 if last is None else last.period + 1, 0, last)

    def label(self, place: Place) -> str:
        return f"period_{place.period}"

    def _period(self, period: int, repeat: int, start: Place | None) -> Period | None:
        if period >= self.num_periods:
            return None
        training = self.plan(period)
        validation = dataclasses.replace(
            training,
            unroll=self.validation_unroll,
            depth=self.validation_depth,
            epochs=self.validation_epochs,
            warmup=self.validation_warmup,
            warmup_rate=self.validation_warmup_rate,
            imitation=0.0,
        )
        return Period(Place(0, period, repeat), start, training, validation)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Repeat(Simple):
    """Periods that are tried again, from where they started, when they made the student much worse.

    Period n is repeated if its validation loss is above `v + threshold |v|`, v that of period n - 1. When no
    attempt passes, the best one counts.

    Attributes:
      max_repeat: attempts at a period; 0 for as many as it takes.
      threshold: how much worse is too much, as a share.
    """

    num_periods: int = 20
    unroll: Schedule = 100
    depth: Schedule = (1, 2, 5)
    validation_depth: int = 5
    validation_unroll: int = 100
    max_repeat: int = 4
    threshold: float = 0.8

    name: ClassVar[str] = "repeat"
    has_repeats: ClassVar[bool] = True

    def next(self, records: Sequence[Record]) -> Period | None:
        if not records:
            return self._period(0, 0, None)
        last, before = records[-1], _attempts(records, 0, records[-1].place.period - 1)
        failed = before and _too_bad(last.validation, _best(before).validation, self.threshold)
        if failed and (not self.max_repeat or last.place.repeat + 1 < self.max_repeat):
            return self._period(last.place.period, last.place.repeat + 1, _best(before).place)
        now = _attempts(records, 0, last.place.period)
        return self._period(last.place.period + 1, 0, _best(now).place)

    label = Strategy.label


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curriculum(Strategy):
    """Stages of growing length; each goes on while its student improves, and hands on its best one.

    Schedules follow the stage. A student is validated on the next stage, without imitation. A stage has at
    least `num_periods + 1` periods, and ends when the last `num_chances` brought nothing better, or after
    `max_periods`. A period is repeated if its validation loss is above `v + threshold |v|`, v the best of the
    period before; in the first period of a later stage its training's meta-loss is compared with the best
    validation of the stage before, which was the same test.

    Attributes:
      num_stages: stages.
      num_chances: periods without a better student after which a stage ends.
      max_periods: periods after which it ends in any case.
      max_repeat: attempts at a period; 0 for as many as it takes.
      threshold: how much worse is too much, as a share.
    """

    num_stages: int = 4
    depth: Schedule = (1, 2, 5, 10, 20)
    imitation: Schedule = (0.2, 0.1, 0.05, 0.02)
    warmup: Schedule = 1
    num_chances: int = 5
    max_periods: int = 20
    max_repeat: int = 4
    threshold: float = 0.5

    name: ClassVar[str] = "curriculum"
    has_stages: ClassVar[bool] = True
    has_repeats: ClassVar[bool] = True

    def next(self, records: Sequence[Record]) -> Period | None:
        if not records:
            return self._period(0, 0, 0, None)
        last = records[-1]
        stage, period, repeat = last.place.stage, last.place.period, last.place.repeat
        attempts = _attempts(records, stage, period)
        if self._failed(last, records) and (not self.max_repeat or repeat + 1 < self.max_repeat):
            return self._period(stage, period, repeat + 1, self._start(stage, period, records))
        best = _best([record for record in records if record.place.stage == stage])
        improves = period < self.num_periods or period - best.place.period < self.num_chances
        if improves and period + 1 < max(self.max_periods, self.num_periods + 1):
            return self._period(stage, period + 1, 0, _best(attempts).place)
        return None if stage + 1 == self.num_stages else self._period(stage + 1, 0, 0, best.place)

    def label(self, place: Place) -> str:
        return f"stage_{place.stage}.{place.period}.{place.repeat}"

    def _failed(self, last: Record, records: Sequence[Record]) -> bool:
        stage, period = last.place.stage, last.place.period
        if period:
            before = _best(_attempts(records, stage, period - 1))
            return _too_bad(last.validation, before.validation, self.threshold)
        if stage:
            before = _best([record for record in records if record.place.stage == stage - 1])
            return _too_bad(last.meta_loss, before.validation, self.threshold)
        return False

    def _start(self, stage: int, period: int, records: Sequence[Record]) -> Place | None:
        if period:
            return _best(_attempts(records, stage, period - 1)).place
        earlier = [record for record in records if record.place.stage == stage - 1]
        return _best(earlier).place if earlier else None

    def _period(self, stage: int, period: int, repeat: int, start: Place | None) -> Period:
        validation = dataclasses.replace(self.plan(stage + 1), imitation=0.0)
        return Period(Place(stage, period, repeat), start, self.plan(stage), validation)


STRATEGIES: dict[str, type[Strategy]] = {kind.name: kind for kind in (Simple, Repeat, Curriculum)}


def _attempts(records: Sequence[Record], stage: int, period: int) -> list[Record]:
    return [record for record in records if (record.place.stage, record.place.period) == (stage, period)]


def _best(records: Sequence[Record]) -> Record:
    return min(records, key=lambda record: math.inf if math.isnan(record.validation) else record.validation)


def _too_bad(value: float, before: float, threshold: float) -> bool:
    """Whether a loss is not a number, or above another by more than a share of it."""
    if math.isnan(before):
        return math.isnan(value)
    return not value <= before + abs(before) * threshold
