"""What a script sets before it imports torch, which takes seconds. Import this first.

By default a waiting thread of torch spins for milliseconds, which burns a core, and where another program wants that
core every step takes many times as long. After a short spin it shall sleep instead: on two cores, steps then take the
same time on an idle machine and less than half on a busy one. A value that the user has set stays.

Ctrl-C meanwhile ends in a sentence, as it does later.
"""

import os
import sys

os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def _without_trace(kind, error, trace):
    if issubclass(kind, KeyboardInterrupt):
        print("\nStopped by Ctrl-C.", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


sys.excepthook = _without_trace
