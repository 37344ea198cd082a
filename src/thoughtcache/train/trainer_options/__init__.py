"""What every trainer of this package is asked for in the words of transformers: schedules and reports."""
