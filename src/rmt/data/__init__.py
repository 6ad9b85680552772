"""Whatever a data set of any task needs, once."""
