"""Static time from a TPU's final schedule: bundles (one is issued a cycle) times the trip counts of their loops.

libtpu writes the schedule of every kernel to a folder. The time is a lower estimate: it has no stalls and no waiting
for transfers from HBM.
"""

import pathlib
import re

# A bundle, with its label (LB: first bundle of a loop) and one '>' for each loop around it.
_BUNDLE = re.compile(r'^\s*(?:0x[0-9a-f]+|0)\s+(?P<label>[A-Z]{2})?\s*:\s*(?P<depth>(?:>\s*)*)\{')
_EXIT_TEST = re.compile(r'scmp\.ge\.s32\.totalorder %\w+, (?P<trips>\d+) /\* loop exit test')


def dump_flags(folder: str) -> str:
    """What LIBTPU_INIT_ARGS must hold, before jax is imported, for the final schedules to be written to `folder`."""
    return f'--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true --xla_jf_dump_llo_pass_label_regex=final_bundles$'


def total_bundles(folder: str) -> tuple[int, int]:
    """(bundles that are issued by all kernels in `folder`, loops whose trip count the schedule does not tell)."""
    bundles = unknown = 0
    for path in pathlib.Path(folder).glob('*final_bundles.txt'):
        if 'TLP' in path.name or 'schedule-analysis' in path.name or '<late' in path.name:
            continue
        issued, more_unknown = count_bundles(path.read_text())
        bundles, unknown = bundles + issued, unknown + more_unknown
    return bundles, unknown


def count_bundles(schedule: str) -> tuple[int, int]:
    """(bundles issued, loops of unknown trip count, taken as one trip) of one kernel."""
    unknown = 0
    loops = [[0, 1]]  # for each loop around the current bundle: [bundles issued in one trip, trips]; first the kernel

    def leave(depth: int) -> None:
        nonlocal unknown
        while len(loops) > depth + 1:
            issued, trips = loops.pop()
            unknown += trips == 0
            loops[-1][0] += issued * max(trips, 1)

    for line in schedule.splitlines():
        bundle = _BUNDLE.match(line)
        if not bundle:
            continue
        depth = bundle['depth'].count('>')
        if bundle['label'] == 'LB' and depth == 0:  # a loop of collectives, whose bundles are not marked
            leave(0)
            unknown += 1
        elif bundle['label'] == 'LB':
            leave(depth - 1)
            loops.append([0, 0])
        elif '{}' not in line:  # an empty bundle does not say in which loop it is
            leave(depth)
        loops[-1][0] += 1
        if exit_test := _EXIT_TEST.search(line):
            loops[-1][1] = int(exit_test['trips'])
    leave(0)
    return loops[0][0], unknown
