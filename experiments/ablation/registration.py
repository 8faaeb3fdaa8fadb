"""A grid as a file says it: which arms are trained and how often, what is compared, and by which rules.

Each grid is one TOML file in `grids/`. `read_grid` turns it into the classes below and checks it. A grid with
`registration = true` is a pre-registration: it is committed before its first run. Every record holds the sha256 of the
file, and runner and report refuse records of another one. So nobody can change an arm, a margin or a rule after the
results are known without it being noticed.

The digest is that of the bytes of the file, comments included, not of the parsed content. So `sha256sum` and `git log`
show which text a record belongs to, and no program of ours has to be trusted.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from experiments.ablation.rows import ROWS, Row
from pnn_jax.errors import InputError, one_line, os_reason
from pnn_jax.paths import local_path
from pnn_jax.run.workdir import flat_fields
from pnn_jax.stats import MIN_RUNS

GRIDS = Path(__file__).with_name('grids')
KINDS = ('difference', 'non_inferiority', 'interaction')
SEARCH = 'search'  # a learning rate that is still to be chosen
COMPUTED = {'computed': True}  # marks fields that `read_grid` fills in, not the file


@dataclasses.dataclass(frozen=True)
class Arm:
    """One set of runs that differ only in their seeds.

    Attributes:
        row: name of the network, one of `ROWS`.
        runs: how many.
        name: used in file names and on the command line; default: the name of the row.
        what: a few words for tables; default: those of the row.
        num_filters: width; 0 keeps that of the grid or of the row's config.
        match: name of another arm. The width is chosen so that both have about as many weights.
        learning_rate: a number; 0 keeps that of the grid; 'search' if it is still to be chosen, so that nothing can be
            trained yet.
        rates: in a rate search, the learning rates to try: the arm stands for one arm a rate.
        changes: further fields of the config, 'model.noise_level' -> 0.1. They override those of row and grid.
        exploratory: not part of any registered test, and not pooled with the other arms.
        late: trained after all other arms.
        images_per_second: what one core trains, roughly. For the estimate of `--plan` alone.
        searched: for one rate of a rate search: the name of the arm without the rate.
    """

    row: str
    runs: int
    name: str = ''
    what: str = ''
    num_filters: int = 0
    match: str = ''
    learning_rate: float | str = 0.0
    rates: tuple[float, ...] = ()
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    exploratory: bool = False
    late: bool = False
    images_per_second: float = 0.0
    searched: str = dataclasses.field(default='', metadata=COMPUTED)

    @property
    def network(self) -> Row:
        return ROWS[self.row]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One comparison: the accuracy of `first` minus that of `second`, in points.

    Attributes:
        question: what it answers.
        first, second: names of arms.
        margin: a difference smaller than this does not matter, in points.
        family: tests of one family are adjusted together (Holm). Those of a difference and those of the margin are
            adjusted separately, each with 5% false alarms a family at most.
        kind: 'difference': is there a difference, and is it within +-margin? 'non_inferiority': is `first` worse than
            `second` by less than the margin? 'interaction': is the difference another one than that of the two arms in
            `versus`? The value is then (first - second) - (versus[0] - versus[1]).
        versus: two names of arms, for interactions.
        primary: one of the primary hypotheses.
        sentence: begins the sentence about this comparison at the top of the report; '' for none.
    """

    question: str
    first: str
    second: str
    margin: float
    family: str
    kind: str = 'difference'
    versus: tuple[str, ...] = ()
    primary: bool = False
    sentence: str = ''

    @property
    def arms(self) -> tuple[str, ...]:
        """All arms that it involves."""
        return self.first, self.second, *self.versus


@dataclasses.dataclass(frozen=True)
class Look:
    """One blinded look at the spread of the runs, never at differences, after which more runs may be made.

    Attributes:
        after: runs of each arm that are looked at: the first ones.
        pooled_sd_above: bound of the standard deviation between runs, pooled over the arms, in points of accuracy.
        runs: of each of the arms where that is above the bound; otherwise the number of the arm stays.
        arms: names of the arms that are looked at and extended.
    """

    after: int
    pooled_sd_above: float
    runs: int
    arms: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Collapse:
    """When a run counts as collapsed: where one of these is exceeded, or its logits are not finite.

    Attributes:
        train_minus_eval: accuracy on the test set with batch norms in training mode minus the accuracy in evaluation
            mode, in points.
        loss: on the test set, in nats.
    """

    train_minus_eval: float = 10.0
    loss: float = 10.0


@dataclasses.dataclass(frozen=True)
class Analysis:
    """Constants of the analysis.

    Attributes:
        confidence: of every interval.
        level: of every family of tests.
        exclude_collapsed: whether collapsed runs are left out of the primary analysis.
        spread: 'pooled': one standard deviation over all arms that are not exploratory, for every comparison; 'pair':
            that of the arms of the comparison.
        bootstrap_draws, bootstrap_seed: of the second interval, from resampled runs and images.
    """

    confidence: float = 0.95
    level: float = 0.05
    exclude_collapsed: bool = False
    spread: str = 'pooled'
    bootstrap_draws: int = 10_000
    bootstrap_seed: int = 0


@dataclasses.dataclass(frozen=True)
class Grid:
    """A whole file.

    Attributes:
        what: data and scale in a few words; every report begins with it.
        reference: name of the arm that every other arm is measured against in the table of arms.
        arms: in the order of the file.
        comparisons: in the order of the report.
        changes: fields of the config, for all arms.
        seed, mask_seed: run number k has weight seed `seed + k` and mask seed `mask_seed + k`.
        registration: confirmatory: what the file says must not change once there are runs.
        hypotheses: in words.
        power: how the numbers of runs were chosen, in words.
        limits: what the grid cannot say, in words; '' for nothing in particular.
        rates_from: name of the grid whose validation accuracies chose the learning rates; '' for none.
        look: see `Look`.
        collapse: see `Collapse`.
        analysis: see `Analysis`.
        name: of the file, without its ending.
        path: of the file.
        sha256: hex, of the bytes of the file.
    """

    what: str
    reference: str
    arms: tuple[Arm, ...]
    comparisons: tuple[Comparison, ...] = ()
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    seed: int = 0
    mask_seed: int = 0
    registration: bool = False
    hypotheses: tuple[str, ...] = ()
    power: str = ''
    limits: str = ''
    rates_from: str = ''
    look: Look | None = None
    collapse: Collapse = Collapse()
    analysis: Analysis = Analysis()
    name: str = dataclasses.field(default='', metadata=COMPUTED)
    path: Path | None = dataclasses.field(default=None, metadata=COMPUTED)
    sha256: str = dataclasses.field(default='', metadata=COMPUTED)

    def arm(self, name: str) -> Arm:
        return next(arm for arm in self.arms if arm.name == name)

    @property
    def blind(self) -> bool:
        """Whether no accuracy is shown while it runs.

        Otherwise somebody could decide from the results of a registration whether to continue, or choose a learning
        rate by its test accuracy.
        """
        return self.registration or any(arm.searched for arm in self.arms)

    @property
    def primary_arms(self) -> set[str]:
        """Names of the arms of the primary comparisons."""
        return {name for comparison in self.comparisons if comparison.primary for name in comparison.arms}

    @property
    def pooled_arms(self) -> list[str]:
        """Names of the arms whose spread is pooled."""
        return [arm.name for arm in self.arms if not arm.exploratory]


def grid_names() -> list[str]:
    """The grids that come with the project."""
    return sorted(path.stem for path in GRIDS.glob('*.toml'))


def read_grid(grid: str | Path) -> Grid:
    """Reads a grid.

    Args:
        grid: the name of a file in `grids/`, or the path of another TOML file.

    Raises:
        InputError: there is no such file, or it is not a grid: one line that names the entry, its value and what is
            allowed.
    """
    if str(grid) in grid_names():
        path = GRIDS / f'{grid}.toml'
    elif str(grid).endswith('.toml'):
        path = local_path(grid, '--grid')
    else:
        raise InputError(f'--grid={grid}: must be one of {", ".join(grid_names())}, or the path of a .toml file')
    try:
        content = path.read_bytes()
        table = tomllib.loads(content.decode())
    except OSError as error:
        raise InputError(f'--grid={grid}: cannot be read ({os_reason(error)})') from None
    except ValueError as error:
        raise InputError(f'{path}: is not a TOML file ({one_line(error)})') from None
    read = _build(Grid, table, str(path))
    arms = tuple(expanded for arm in read.arms for expanded in _expanded(arm, str(path)))
    digest = hashlib.sha256(content).hexdigest()
    read = dataclasses.replace(read, arms=arms, name=path.stem, path=path, sha256=digest)
    _check(read, str(path))
    return read


def _expanded(arm: Arm, where: str) -> list[Arm]:
    """The arm with its defaults filled in; in a rate search, one arm a rate."""
    if arm.row not in ROWS:
        raise InputError(f'{where}: row = {arm.row!r} is not one of {", ".join(ROWS)}')
    name, what = arm.name or arm.row, arm.what or arm.network.what
    if not arm.rates:
        return [dataclasses.replace(arm, name=name, what=what)]
    return [
        dataclasses.replace(
            arm,
            name=f'{name}_rate{rate:g}',
            what=f'{what}, learning rate {rate:g}',
            learning_rate=rate,
            rates=(),
            searched=name,
        )
        for rate in arm.rates
    ]


# --- the rules of a grid ----------------------------------------------------------------------------------------------


def _check(grid: Grid, where: str) -> None:
    """Raises InputError where entries do not fit together."""
    names = [arm.name for arm in grid.arms]
    _check_names([grid.reference], names, f'{where}: reference')
    for name in names:
        if names.count(name) > 1:
            raise InputError(f'{where}: two arms have the name {name!r}')
        if not name.replace('_', '').replace('.', '').replace('-', '').isalnum():
            raise InputError(f'{where}: arm {name!r}: a name has only letters, digits, "_", "-" and "."')
    for arm in grid.arms:
        _check_arm(arm, [other.name for other in grid.arms if not other.match], f'{where}: arm {arm.name}')
    seen: set[tuple] = set()
    for comparison in grid.comparisons:
        _check_comparison(comparison, names, f'{where}: comparison {comparison.question!r}')
        compared = (frozenset(comparison.arms), comparison.kind)
        if compared in seen:
            raise InputError(f'{where}: {" and ".join(comparison.arms)} are compared twice')
        seen.add(compared)
    if grid.look:
        _check_look(grid, names, f'{where}: look')
    if grid.registration:
        _check_registration(grid, where)
    _check_rules(grid, where)


def _check_rules(grid: Grid, where: str) -> None:
    analysis = grid.analysis
    if analysis.confidence != 0.95:
        raise InputError(f'{where}: analysis: confidence = {analysis.confidence} must be 0.95, as every table says')
    if not 0 < analysis.level < 0.5:
        raise InputError(f'{where}: analysis: level = {analysis.level} must be above 0 and below 0.5')
    if analysis.spread not in ('pooled', 'pair'):
        raise InputError(f"{where}: analysis: spread = {analysis.spread!r} must be 'pooled' or 'pair'")
    if analysis.bootstrap_draws < 1 or analysis.bootstrap_seed < 0:
        raise InputError(
            f'{where}: analysis: bootstrap_draws = {analysis.bootstrap_draws} must be 1 or more, and '
            f'bootstrap_seed = {analysis.bootstrap_seed} must be 0 or more'
        )
    for name, bound in dataclasses.asdict(grid.collapse).items():
        if not 0 < bound < math.inf:
            raise InputError(f'{where}: collapse: {name} = {bound} must be a number above 0')


def _check_names(found: Iterable[str], names: list[str], where: str) -> None:
    for name in found:
        if name not in names:
            raise InputError(f'{where}: {name!r} is not one of {", ".join(names)}')


def _check_arm(arm: Arm, unmatched: list[str], where: str) -> None:
    if arm.runs < 1:
        raise InputError(f'{where}: runs = {arm.runs} must be 1 or more')
    if arm.match:
        _check_names([arm.match], unmatched, f'{where}: match')
        if arm.num_filters:
            raise InputError(f'{where}: num_filters = {arm.num_filters} and match = {arm.match!r} exclude each other')
    rate = arm.learning_rate
    if arm.searched and rate == 0:
        raise InputError(f'{where}: rates: 0 must be a number above 0')
    if (isinstance(rate, str) and rate != SEARCH) or (not isinstance(rate, str) and not 0 <= rate < math.inf):
        raise InputError(f'{where}: learning_rate = {rate!r} must be a number above 0, or {SEARCH!r}')


def _check_comparison(comparison: Comparison, names: list[str], where: str) -> None:
    _check_names(comparison.arms, names, where)
    if not 0 < comparison.margin < math.inf:
        raise InputError(f'{where}: margin = {comparison.margin!r} must be a number above 0')
    if comparison.kind not in KINDS:
        raise InputError(f'{where}: kind = {comparison.kind!r} is not one of {", ".join(KINDS)}')
    if len(comparison.versus) != (2 if comparison.kind == 'interaction' else 0):
        raise InputError(f'{where}: versus = {list(comparison.versus)} must be two arms for an interaction, else none')
    for arm in comparison.arms:
        if comparison.arms.count(arm) > 1:  # the standard error is that of independent arms
            raise InputError(f'{where}: {arm} is compared with itself')


def _check_look(grid: Grid, names: list[str], where: str) -> None:
    _check_names(grid.look.arms, names, f'{where}: arms')
    if not 0 < grid.look.pooled_sd_above < math.inf:
        raise InputError(f'{where}: pooled_sd_above = {grid.look.pooled_sd_above} must be a number above 0')
    if len(grid.look.arms) < 1 or grid.look.after < 2:
        raise InputError(f'{where}: needs one arm or more, and after = {grid.look.after} must be 2 or more')
    for name in grid.look.arms:
        if not grid.look.after <= grid.arm(name).runs <= grid.look.runs:
            raise InputError(
                f'{where}: arm {name} has {grid.arm(name).runs} runs; it must be from after = {grid.look.after} to '
                f'runs = {grid.look.runs}'
            )


def _check_registration(grid: Grid, where: str) -> None:
    """What a confirmatory grid must have besides."""
    if not grid.hypotheses:
        raise InputError(f'{where}: a registration needs hypotheses')
    if not any(comparison.primary for comparison in grid.comparisons):
        raise InputError(f'{where}: a registration needs a comparison with primary = true')
    for comparison in grid.comparisons:
        for arm in map(grid.arm, comparison.arms):
            if arm.exploratory or arm.runs < MIN_RUNS:
                raise InputError(
                    f'{where}: comparison {comparison.question!r}: arm {arm.name} must not be exploratory, and needs '
                    f'{MIN_RUNS} runs or more; it has {arm.runs}'
                )


# --- TOML tables to dataclasses ---------------------------------------------------------------------------------------

TYPE_NAMES = {str: 'a string', int: 'a whole number', float: 'a number', bool: 'true or false', tuple: 'a list'}


def _build(cls: type, table: Mapping[str, Any], where: str) -> Any:
    """An instance of a dataclass from a TOML table, with the types of its fields checked.

    Raises:
        InputError: a key is unknown or missing, or a value has another type than the field.
    """
    fields = {field.name: field for field in dataclasses.fields(cls) if 'computed' not in field.metadata}
    for key in table:
        if key not in fields:
            raise InputError(f'{where}: {key!r} is not one of {", ".join(fields)}')
    for key, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and key not in table:
            raise InputError(f'{where}: {key!r} is missing')
    hints = typing.get_type_hints(cls)
    return cls(**{key: _value(hints[key], value, f'{where}: {key}') for key, value in table.items()})


def _value(hint: Any, value: Any, where: str) -> Any:
    """A TOML value as the type that a field declares. A table of config fields becomes flat: 'model.name' -> value."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for option in options:
        kind = typing.get_origin(option) or option
        if kind is tuple and isinstance(value, list):
            item = typing.get_args(option)[0]
            return tuple(_value(item, entry, f'{where}[{index}]') for index, entry in enumerate(value))
        if kind is Mapping and isinstance(value, dict):
            return flat_fields(value)
        if dataclasses.is_dataclass(kind) and isinstance(value, dict):
            return _build(kind, value, where)
        if kind is float and type(value) in (int, float):
            return float(value)
        if type(value) is kind:  # not isinstance, for which true is a whole number
            return value
    names = [TYPE_NAMES.get(typing.get_origin(option) or option, 'a table') for option in options]
    raise InputError(f'{where} = {value!r}: must be {" or ".join(dict.fromkeys(names))}')
