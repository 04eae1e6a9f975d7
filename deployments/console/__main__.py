"""`python -m deployments.console --host H --port P`: see `app.py`."""

from deployments.console.app import main

if __name__ == "__main__":
    main()
