"""Reports of a run: HTML pages, plots and tables."""
