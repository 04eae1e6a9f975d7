"""Cameras that are not there: HTTP servers that speak a camera's protocol, for `onblock demo` and for the tests."""
