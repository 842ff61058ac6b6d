"""First on the path, this module hides FFCV from a process and its child processes."""

raise ImportError("No module named 'ffcv'")
