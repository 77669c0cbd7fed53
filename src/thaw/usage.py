"""What `--help` prints: the groups and what each offers, as the files of `conf/` are named."""

from collections.abc import Sequence
from pathlib import Path

USAGE = """\
Thaw fine-tunes pretrained networks: python train.py [group=choice] [key=value]

Groups (group=choice)
{groups}

Sweep with -m: python train.py -m freezing=none,gradual seed=0,1,2
See every key and its value: python train.py --cfg job"""


def usage(places: Sequence[Path]) -> str:
    """Hydra's own way composes a whole configuration first, and takes twice as long.

    Args:
        places: folders of configuration; their groups are told together.
    """
    options: dict[str, set[str]] = {}
    for place in places:
        for path in place.glob("*/*.yaml"):
            options.setdefault(path.parent.name, set()).add(path.stem)
    lines = [f"{group}: {', '.join(sorted(names))}" for group, names in sorted(options.items())]
    return USAGE.format(groups="\n".join(lines))
