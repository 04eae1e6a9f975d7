"""The tests. Real servers, real file systems, real programs; where one is missing the test skips, and in CI that fails."""
