"""`python -m vivavoce` is the command line."""

import sys

from vivavoce.cli import main

if __name__ == "__main__":
    sys.exit(main())
