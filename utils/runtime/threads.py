"""How torch's CPU threads wait for each other. Import this before torch.

By default a waiting thread spins for milliseconds, which burns a core, and where another program wants that core every
step takes many times as long. After a short spin it shall sleep instead: on two cores, steps then take the same time on
an idle machine and less than half on a busy one. A value that the user has set stays.
"""

import os

os.environ.setdefault("GOMP_SPINCOUNT", "1000")
