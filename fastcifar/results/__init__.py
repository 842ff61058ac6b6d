"""From a run directory to charts, tables and pages. Needs no torch."""
