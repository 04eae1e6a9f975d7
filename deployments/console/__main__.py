"""`python -m deployments.console --host H --port P`: see `app.py`."""

import sys

from blocks.errors import OnblockError
from deployments.console.app import main

if __name__ == "__main__":
    try:
        main()
    except OnblockError as error:
        print(f"console: {error}", file=sys.stderr)
        sys.exit(2)
