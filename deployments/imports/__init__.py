"""What moves into onblock from elsewhere: so far, workspaces of FileFlow."""
