"""`python -m gensamp` is the command line."""

import sys

from gensamp.cli import main

sys.exit(main())
