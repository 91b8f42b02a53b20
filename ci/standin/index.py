"""`python -m standin.index CHANNEL`: write the repodata of a channel.

In a process of its own because rattler may crash when Python shuts down.
"""

import asyncio
import os
import sys

from rattler.index import index_fs

if __name__ == "__main__":
    asyncio.run(index_fs(sys.argv[1], write_zst=True, write_shards=False))
    sys.stdout.flush()
    os._exit(0)
