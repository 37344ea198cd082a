"""`python -m thoughtcache_cli`."""

import sys

from thoughtcache_cli import main

sys.exit(main())
