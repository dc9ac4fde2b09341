"""A whole run: settings, recipes, the run folder, rounds, selection and results."""
