"""Files of weights: which model one holds, and what the authors' files look like."""
