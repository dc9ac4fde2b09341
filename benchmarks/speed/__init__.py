"""Measures how fast StepAgent is beside what its users would otherwise run: `make bench`.

    python -m benchmarks.speed                   # everything
    python -m benchmarks.speed trl generate      # some questions

One module for each question. Both sides of a comparison run in turn in the same run, and nothing is
timed before their results were found equal.
"""
