"""Fast arithmetic without policy: compiled kernels, each with a plain equivalent."""
