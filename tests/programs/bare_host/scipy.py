"""First on the path, this module hides scipy from a process and its child processes."""

raise ImportError("No module named 'scipy'")
