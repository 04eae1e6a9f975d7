"""How it is run: command line, demo, bootstrap, console, agent."""
