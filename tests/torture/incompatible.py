"""controllerd of the release after the next, with a migration that no older one can live with."""

from __future__ import annotations

import sys

from tests.torture.upgraded import RENAMED, WIDER, run

if __name__ == "__main__":
    sys.exit(run([WIDER, RENAMED], "keypair_remark"))
