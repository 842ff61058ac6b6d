"""Fast arithmetic without policy: compiled kernels, each with its plain twin."""
