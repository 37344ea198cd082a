"""`python -m thoughtcache_cli`."""

import sys

from thoughtcache_cli import program

sys.exit(program())
