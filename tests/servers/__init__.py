"""Real servers for the tests: started in a state folder, waited for until ready, stopped by process id.

    with Postgres(folder) as server:
        server.info["url"]

`python -m tests.servers.install` brings the Debian packages they and the tests need.
"""
